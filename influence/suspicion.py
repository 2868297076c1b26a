"""Suspicion: how likely a point's given label is wrong, from models and neighbours that never saw that label.

Two signals, both blind to the point's own label: L1, the mean log-probabilities of models trained without the point
(over folds, repeats and checkpoints), and L2, the log-frequencies of labels among its nearest other points. They are
stacked into one belief about the true label, and the given labels are read as that belief seen through noise of an
unknown rate, the same for all pairs of classes or not (stacking.py). The likelihood of the given labels sets all of
it, so that no true label is needed.

Since wrong labels also teach the models, a second round trains without those found in the first. The votes stay as
they are: a neighbour's improved label would carry this point's own given label back to it, and the fit would take that
echo for evidence and find no noise (seen on digits, 20 % flips: the estimated rate fell to .05 and nothing was found).

Notation: n points, C classes, d features. float64 inside. An error that is consistent and visible in the input is
invisible here, because the models learn it; signed influence on trusted queries sees it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from influence.curvature.base import AllReduce, alone
from influence.errors import InfluenceError
from influence.matmul import product
from influence.sharding import WHOLE, Share
from influence.stacking import Stack, fit_stack

NEIGHBOURS = 15
SEEKING, VOTING = 256, 1 << 14  # points and voters between which distances are in memory at a time
REFINED = 1 << 21  # numbers in the differences that are measured again at a time
ROUNDING = 1e-5  # of the largest |x|^2: more than float32 loses in a distance
EVIDENCE = 3.0  # nats that noise must gain over none before it is believed: twenty times likelier labels
OutOfFold = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Suspicion:
    """What is known of each given label.

    Attributes:
        score: log-odds that the given label is wrong; larger is more suspicious, [n].
        posterior: probability that the given label is wrong, [n].
        suggested_label: the most likely true label, [n], int64.
        label_probs: probability of each label being the true one, [n, C].
        noise_rate: estimated share of wrong labels among the points that entered the fit.
        stack: of the last round.
    """

    score: Tensor
    posterior: Tensor
    suggested_label: Tensor
    label_probs: Tensor
    noise_rate: float
    stack: Stack


def two_round(out_of_fold: OutOfFold, votes: Tensor, labels: Tensor, in_train: Tensor) -> Suspicion:
    """The two-round stack.

    Args:
        out_of_fold: given the points to train on, bool [n], returns for every point the mean log-probabilities [n, C]
            of the models that were not trained on it: of its own fold's if it is in the mask, of all others'
            otherwise. Called twice, or once where the first round finds nothing.
        votes: labels of the nearest other points in training, counted: `knn_votes`, [n, C].
        labels: given labels, [n], int64 in [0, C).
        in_train: points that may be trained on, bool [n]. The others, removed earlier, are scored, but do not enter
            the fit.
    """
    first = suspect(out_of_fold(in_train), votes, labels, in_train)
    kept = in_train & (first.posterior <= 0.5)
    if torch.equal(kept, in_train):
        return first
    return suspect(out_of_fold(kept), votes, labels, in_train, evidence=0.0)  # that labels are wrong is settled


def knn_votes(
    inputs: Tensor,
    labels: Tensor,
    classes: int,
    voters: Tensor,
    k: int = NEIGHBOURS,
    share: Share = WHOLE,
    all_reduce: AllReduce = alone,
) -> Tensor:
    """Count the labels of the k nearest other points, by Euclidean distance.

    Args:
        inputs: [n, d]; the neighbours are sought where they are.
        labels: given labels, [n], int64 in [0, C).
        classes: C.
        voters: points that vote, bool [n].
        k: less than the number of voters.
        share: this rank's, of the points whose neighbours are sought; every rank holds the inputs of all.
        all_reduce: sums a tensor over ranks, in place.

    Returns:
        [n, C], float64; rows sum to k.

    Raises:
        InfluenceError: too few voters.
    """
    if not 0 < k < int(voters.sum()):
        raise InfluenceError(f"k = {k} neighbours of {int(voters.sum())} voting points: give k in [1, voters - 1]")
    x = inputs.flatten(1)
    x = x if x.dtype == torch.float64 else x.float()
    labels, voting = labels.to(x.device), torch.where(voters.to(x.device))[0]
    votes = x.new_zeros(len(x), classes, dtype=torch.float64)
    parts = torch.arange(len(x), device=x.device).split(SEEKING)
    centered = (x - x.mean(0)).float()  # the expanded square of `_near` loses digits far from the origin
    for rows in (parts[part] for part in share.of(len(parts))):
        nearest = _nearest(x, centered, rows, voting, k)
        votes[rows] = one_hot(labels[nearest], classes).double().sum(1)
    all_reduce(votes)
    return votes


def _nearest(x: Tensor, centered: Tensor, rows: Tensor, voting: Tensor, k: int) -> Tensor:
    """The k voters next to some rows, [rows, k]: twice as many by rounded distances, then by exact ones."""
    count = min(2 * k, len(voting))
    near = _near(centered, rows, voting, count)
    found, distances = _by_exact(x, rows, near.voters, k)
    squares = centered[rows].double().square().sum(1)
    unseen = near.farthest.double() + squares - ROUNDING * centered.square().sum(1).max()
    unsure = (distances >= unseen) & (count < len(voting))  # a voter that was left out may be nearer than it seemed
    if bool(unsure.any()):
        double = x.double() - x.double().mean(0)
        found[unsure] = _by_exact(x, rows[unsure], _near(double, rows[unsure], voting, count).voters, k)[0]
    return found


def _by_exact(x: Tensor, rows: Tensor, candidates: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The nearest k of the candidates of each row, [rows, k], and the squared distance of the last, [rows]."""
    at_once = max(1, REFINED // (candidates.shape[1] * x.shape[1]))
    found, last = [], []
    for some, among in zip(rows.split(at_once), candidates.split(at_once)):
        exact = (x[some][:, None] - x[among]).double().square().sum(2)  # [rows, candidates]
        exact.masked_fill_(among == some[:, None], torch.inf)
        nearest = exact.topk(k, dim=1, largest=False)
        found.append(among.gather(1, nearest.indices))
        last.append(nearest.values[:, -1])
    return torch.cat(found), torch.cat(last)


@dataclass(frozen=True)
class _Near:
    """Candidates of some rows, [rows, count], and the rounded distance, less |x|^2, of the last, [rows]."""

    voters: Tensor
    farthest: Tensor


def _near(x: Tensor, rows: Tensor, voting: Tensor, count: int) -> _Near:
    """Voters whose squared distances to some rows of `x`, expanded and so rounded, are the smallest."""
    values, found = [], []
    for voters in voting.split(VOTING):
        others = x[voters]
        distances = others.square().sum(1) - 2 * product(x[rows], others.T)  # less |x|^2, the same along a row
        distances.masked_fill_(rows[:, None] == voters, torch.inf)
        smallest = distances.topk(min(count, len(voters)), dim=1, largest=False, sorted=False)
        values.append(smallest.values)
        found.append(voters[smallest.indices])
    best = torch.cat(values, 1).topk(count, dim=1, largest=False, sorted=False)
    return _Near(torch.cat(found, 1).gather(1, best.indices), best.values.max(1).values)


def suspect(
    out_of_fold: Tensor, votes: Tensor, labels: Tensor, fitted: Tensor, evidence: float = EVIDENCE
) -> Suspicion:
    """One round: fit the stack to the given labels and read every label through it.

    Args:
        out_of_fold: mean log-probabilities of models not trained on the point, [n, C].
        votes: of the nearest other points, [n, C].
        labels: given labels, [n], int64.
        fitted: points whose labels enter the fit, bool [n].
        evidence: nats that noise must gain over none, or no label is called wrong.

    Raises:
        InfluenceError: shapes do not fit, nothing to fit, or values that are not finite.
    """
    _check(out_of_fold, votes, labels, fitted)
    signals = torch.stack([out_of_fold.double(), _log_frequencies(votes)])  # [2, n, C]
    stack = fit_stack(signals[:, fitted], labels[fitted], evidence)
    log_probs = stack.log_probs(signals, labels)
    given = one_hot(labels, log_probs.shape[1]).bool()
    log_wrong = log_probs.masked_fill(given, -torch.inf).logsumexp(1)  # exact where 1 - p would cancel
    score = log_wrong - log_probs[given]
    posterior = score.sigmoid()
    noise_rate = posterior[fitted].mean().item()
    return Suspicion(score, posterior, log_probs.argmax(1), log_probs.exp(), noise_rate, stack)


def _log_frequencies(votes: Tensor) -> Tensor:
    smoothed = votes.double() + 0.5  # Jeffreys' prior: no label is impossible
    return (smoothed / smoothed.sum(1, keepdim=True)).log()


def _check(out_of_fold: Tensor, votes: Tensor, labels: Tensor, fitted: Tensor) -> None:
    n = len(labels)
    if out_of_fold.ndim != 2 or out_of_fold.shape != votes.shape or len(votes) != n or fitted.shape != (n,):
        shapes = [tuple(x.shape) for x in (out_of_fold, votes, labels, fitted)]
        raise InfluenceError(f"shapes {shapes}: give log-probabilities and votes [n, C], labels and fitted [n]")
    if out_of_fold.shape[1] < 2 or not bool(fitted.any()):
        raise InfluenceError(f"{out_of_fold.shape[1]} classes, {int(fitted.sum())} points to fit: give 2 and 1 or more")
    finite = torch.isfinite(out_of_fold).all(1) & torch.isfinite(votes).all(1)
    if not bool(finite.all()):
        raise InfluenceError(f"out-of-fold log-probabilities or votes of row {int((~finite).nonzero()[0])} not finite")
