"""Suspicion: how likely a point's given label is wrong, from models and neighbours that never saw that label.

Two signals, both blind to the point's own label: L1, the mean log-probabilities of models trained without the point
(over folds, repeats and checkpoints), and L2, the log-frequencies of labels among its nearest other points. They are
stacked into one belief about the true label, p ~ softmax(w1 L1 + w2 L2), and the given labels are read as that belief
seen through uniform noise of an unknown rate eps:

    P(y given) = (1 - eps) p_y + eps (1 - p_y) / (C - 1).

Maximum likelihood of the given labels sets w1, w2 and eps, so that no true label is needed. Since wrong labels also
teach the models, a second round trains without those found in the first. The votes stay as they are: a neighbour's
improved label would carry this point's own given label back to it, and the fit would take that echo for evidence and
find no noise (seen on digits, 20 % flips: the estimated rate fell to .05 and nothing was found).
Notation: n points, C classes, d features. float64 inside. An error that is consistent and visible in the input is
invisible here, because the models learn it; signed influence on trusted queries sees it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from influence.errors import InfluenceError

NEIGHBOURS = 15
DISTANCES = 1 << 22  # in memory at a time
OutOfFold = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class StackWeights:
    """The fitted stack.

    Attributes:
        out_of_fold: w1 > 0.
        neighbours: w2 > 0.
        noise_rate: eps in (0, 1 - 1/C), the share of wrong labels.
    """

    out_of_fold: float
    neighbours: float
    noise_rate: float


@dataclass(frozen=True)
class Suspicion:
    """What is known of each given label.

    Attributes:
        score: log((1 - p_y) / p_y), logits; larger is more suspicious, [n].
        posterior: probability that the given label is wrong, [n].
        suggested_label: the most likely true label, [n], int64.
        label_probs: probability of each label being the true one, [n, C].
        weights: of the last round.
    """

    score: Tensor
    posterior: Tensor
    suggested_label: Tensor
    label_probs: Tensor
    weights: StackWeights

    @property
    def noise_rate(self) -> float:
        """Estimated share of wrong labels."""
        return self.weights.noise_rate


def two_round(
    out_of_fold: OutOfFold, inputs: Tensor, labels: Tensor, classes: int, in_train: Tensor, k: int = NEIGHBOURS
) -> Suspicion:
    """The two-round stack.

    Args:
        out_of_fold: given the points to train on, bool [n], returns for every point the mean log-probabilities [n, C]
            of the models that were not trained on it: of its own fold's if it is in the mask, of all others'
            otherwise. Called twice.
        inputs: what distances are taken on, [n, d].
        labels: given labels, [n], int64 in [0, C).
        classes: C >= 2.
        in_train: points that may be trained on, bool [n]. The others, removed earlier, are scored, but neither teach
            nor vote nor enter the fit.
        k: neighbours.
    """
    votes = knn_votes(inputs, labels, classes, in_train, k)
    first = suspect(out_of_fold(in_train), votes, labels, in_train)
    return suspect(out_of_fold(in_train & (first.posterior <= 0.5)), votes, labels, in_train)


def knn_votes(inputs: Tensor, labels: Tensor, classes: int, voters: Tensor, k: int = NEIGHBOURS) -> Tensor:
    """Count the labels of the k nearest other points, by Euclidean distance.

    Args:
        inputs: [n, d].
        labels: given labels, [n], int64 in [0, C).
        classes: C.
        voters: points that vote, bool [n].
        k: less than the number of voters.

    Returns:
        [n, C]; rows sum to k.

    Raises:
        InfluenceError: too few voters.
    """
    if not 0 < k < int(voters.sum()):
        raise InfluenceError(f"k = {k} neighbours of {int(voters.sum())} voting points: give k in [1, voters - 1]")
    x = inputs.double().flatten(1)
    x = x - x.mean(0)  # the expanded square below loses digits far from the origin
    voting = torch.where(voters)[0]
    squares = x[voting].square().sum(1)
    votes = []
    for rows in torch.arange(len(x)).split(max(1, DISTANCES // len(voting))):
        distances = squares - 2 * x[rows] @ x[voting].T  # less |x|^2, the same along a row; [rows, voters]
        distances.masked_fill_(rows[:, None] == voting, torch.inf)
        nearest = voting[distances.topk(k, dim=1, largest=False).indices]  # [rows, k]
        votes.append(one_hot(labels[nearest], classes).double().sum(1))
    return torch.cat(votes)


def suspect(out_of_fold: Tensor, votes: Tensor, labels: Tensor, fitted: Tensor) -> Suspicion:
    """One round: fit the stack to the given labels and read every label through it.

    Args:
        out_of_fold: mean log-probabilities of models not trained on the point, [n, C].
        votes: of the nearest other points, [n, C].
        labels: given labels, [n], int64.
        fitted: points whose labels enter the fit, bool [n].

    Raises:
        InfluenceError: shapes do not fit, nothing to fit, or values that are not finite.
    """
    _check(out_of_fold, votes, labels, fitted)
    classes = out_of_fold.shape[1]
    signals = torch.stack([out_of_fold.double(), _log_frequencies(votes)])  # [2, n, C]
    weights = _fit(signals[:, fitted], labels[fitted])
    log_probs = _belief(signals, signals.new_tensor([weights.out_of_fold, weights.neighbours]))
    given = one_hot(labels, classes).bool()
    log_given, log_wrong = _split(log_probs, given)
    score = log_wrong - log_given
    odds = torch.tensor(weights.noise_rate / (1 - weights.noise_rate) / (classes - 1), dtype=torch.float64)
    posterior = (score + odds.log()).sigmoid()
    other = (log_probs - log_wrong[:, None]).exp() * posterior[:, None]  # the belief, given that the label is wrong
    label_probs = torch.where(given, 1 - posterior[:, None], other)
    return Suspicion(score, posterior, label_probs.argmax(1), label_probs, weights)


def _log_frequencies(votes: Tensor) -> Tensor:
    smoothed = votes.double() + 0.5  # Jeffreys' prior: no label is impossible
    return (smoothed / smoothed.sum(1, keepdim=True)).log()


def _belief(signals: Tensor, weights: Tensor) -> Tensor:
    """Log-probabilities of the true label, [n, C]."""
    return torch.einsum("s,snc->nc", weights, signals).log_softmax(1)


def _split(log_probs: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of the given label and of all others together, exact where either is nearly 1; [n] each."""
    return log_probs[given], log_probs.masked_fill(given, -torch.inf).logsumexp(1)


def _fit(signals: Tensor, labels: Tensor) -> StackWeights:
    """Maximum likelihood of the given labels; unconstrained in (log w1, log w2, logit of eps / (1 - 1/C))."""
    classes = signals.shape[2]
    given = one_hot(labels, classes).bool()
    ceiling = 1 - 1 / classes
    free = torch.tensor([-0.7, -0.7, -2.0], dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([free], max_iter=200, line_search_fn="strong_wolfe")

    def negative_log_likelihood() -> Tensor:
        solver.zero_grad()
        log_given, log_wrong = _split(_belief(signals, free[:2].exp()), given)
        noise = free[2].sigmoid() * ceiling
        seen = torch.logaddexp((1 - noise).log() + log_given, (noise / (classes - 1)).log() + log_wrong)
        loss = -seen.mean()
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(negative_log_likelihood)
    out_of_fold, neighbours = free[:2].detach().exp().tolist()
    return StackWeights(out_of_fold, neighbours, free[2].detach().sigmoid().item() * ceiling)


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
