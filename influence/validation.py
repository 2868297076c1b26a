"""Statistics that judge scores against a known truth: finding wrong labels, and predicted against real removals.

Retrained models come in as tensors: which points each was trained on, and what it says of every query. Notation:
n train points, m queries, M subsets of the train points, R models trained on each.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from influence.errors import InfluenceError


@dataclass(frozen=True)
class PrecisionRecall:
    """Quality of a found set: share of it that is right, and share of the right that it has; NaN over an empty set."""

    precision: float
    recall: float


def auc(scores: Tensor, positive: Tensor) -> float:
    """Probability that a positive scores above a negative, ties counting half.

    Args:
        scores: larger = more likely positive, [n].
        positive: the truth, [n], bool.
    """
    positives, negatives = _split(positive)
    return float((_ranks(scores)[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def average_precision(scores: Tensor, positive: Tensor) -> float:
    """Sum over thresholds of the rise in recall times the precision there; equal scores share one threshold.

    Args:
        scores: larger = more likely positive, [n].
        positive: the truth, [n], bool.
    """
    positives, _ = _split(positive)
    thresholds, group, sizes = torch.unique(-scores, return_inverse=True, return_counts=True)  # strictest first
    hits = torch.zeros(len(thresholds), dtype=torch.float64).index_add_(0, group, positive.double())
    precision = hits.cumsum(0) / sizes.cumsum(0)
    return float((precision * hits).sum() / positives)


def precision_recall(found: Tensor, positive: Tensor) -> PrecisionRecall:
    """Compare a found set with the truth, both [n], bool."""
    right = (found & positive).sum().double()
    return PrecisionRecall(float(right / found.sum()), float(right / positive.sum()))


def pearson(x: Tensor, y: Tensor) -> float:
    """Correlation of two tensors of equal shape, over all their entries; NaN when one is constant."""
    return float(_correlation(x.double().flatten()[None], y.double().flatten()[None]))


def spearman(x: Tensor, y: Tensor) -> float:
    """Correlation of the ranks of two vectors, ties sharing their mean rank."""
    return pearson(_ranks(x), _ranks(y))


def group_rises(influence: Tensor, removed: Tensor) -> Tensor:
    """Predicted rise of each query's loss when a whole group of points is removed, to first order.

    Args:
        influence: [n, m], positive = helpful.
        removed: members of each group, [k, n], bool.

    Returns:
        [k, m], nats.
    """
    return removed.to(influence) @ influence


def lds(influence: Tensor, subsets: Tensor, losses: Tensor) -> Tensor:
    """Linear datamodeling score: rank correlation, per query, of predicted and real losses over subset models.

    A model trained on a subset is predicted to have the query loss that the removal of all other points leads to, up to
    a constant (Park et al. 2023, arXiv 2303.14186).

    Args:
        influence: [n, m], positive = helpful.
        subsets: membership, [M, n], bool.
        losses: query losses of the models trained on them, [M, m].

    Returns:
        [m], in [-1, 1]; 0 where the prediction is the same for all subsets.
    """
    return _rank_correlations(group_rises(influence, ~subsets), losses).nan_to_num(0)


def noise_ceiling(losses: Tensor) -> Tensor:
    """The LDS, per query, that exact knowledge of every subset's expected loss would reach against these retrainings.

    Two disjoint halves of a subset's models agree over subsets as far as their means are reliable; Spearman and Brown
    carry that over to all R models. A noiseless prediction correlates with their mean by the root of its reliability.

    Args:
        losses: query losses of all models, [M, R, m].

    Returns:
        [m], in [0, 1].

    Raises:
        InfluenceError: one model per subset has no halves.
    """
    retrains = losses.shape[1]
    if retrains < 2:
        raise InfluenceError(f"{retrains} model per subset: the noise of retraining shows from 2 on")
    half = retrains // 2
    rolled = [losses.roll(turn, dims=1) for turn in range(retrains)]
    agreement = torch.stack(
        [_rank_correlations(r[:, :half].mean(1), r[:, half : 2 * half].mean(1)) for r in rolled]
    )  # [R, m], for R ways to halve
    reliable = agreement.mean(0).clamp(min=0)
    longer = retrains / half
    return (longer * reliable / (1 + (longer - 1) * reliable)).sqrt()


@dataclass(frozen=True)
class Agreement:
    """Correlation of predictions with what really happened: of the values, and of their ranks."""

    pearson: float
    spearman: float


def loo_correlation(influence: Tensor, rises: Tensor) -> Agreement:
    """Agreement of predicted with real leave-one-out effects, over all pairs.

    Args:
        influence: of the removed points on the queries, [r, m].
        rises: real rise of the query loss after refitting without each of the same points, [r, m].
    """
    return Agreement(pearson(influence, rises), spearman(influence.flatten(), rises.flatten()))


@dataclass(frozen=True)
class Interval:
    """A statistic and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def bootstrap(statistic: Callable[[Tensor], float], strata: Tensor, resamples: int = 1000, seed: int = 0) -> Interval:
    """A statistic with its percentile interval when the items, e.g. queries, are drawn anew.

    Args:
        statistic: of the items at these rows, int64; a row may come more than once.
        strata: each item's stratum, [k], int64; every stratum keeps its size. All zeros for one stratum.
        resamples: how often.
        seed: of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    members = [(strata == stratum).nonzero()[:, 0] for stratum in strata.unique()]
    drawn = [
        statistic(torch.cat([rows[torch.randint(len(rows), (len(rows),), generator=generator)] for rows in members]))
        for _ in range(resamples)
    ]
    low, high = torch.tensor(drawn, dtype=torch.float64).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    return Interval(statistic(torch.arange(len(strata))), float(low), float(high))


def _split(positive: Tensor) -> tuple[int, int]:
    positives = int(positive.sum())
    if positives in (0, len(positive)):
        raise InfluenceError(f"{positives} of {len(positive)} points are positive: a ranking needs both kinds")
    return positives, len(positive) - positives


def _ranks(values: Tensor) -> Tensor:
    """Ranks from 1, the mean rank where values are equal, float64."""
    _, group, sizes = torch.unique(values, return_inverse=True, return_counts=True)
    ranks: Tensor = sizes.cumsum(0).double() - (sizes - 1) / 2
    return ranks[group]


def _rank_correlations(x: Tensor, y: Tensor) -> Tensor:
    """Correlation of the ranks down each column of two matrices, [k, m] -> [m]."""
    columns = zip(x.T, y.T, strict=True)
    ranks = [(_ranks(a), _ranks(b)) for a, b in columns]
    return _correlation(torch.stack([a for a, _ in ranks]), torch.stack([b for _, b in ranks]))


def _correlation(x: Tensor, y: Tensor) -> Tensor:
    x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)  # [k, n]
    cosine: Tensor = (x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1))
    return cosine
