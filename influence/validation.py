"""Statistics that judge scores against a known truth: finding wrong labels, and predicted against real removals."""

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


def lds(influence: Tensor, subsets: Tensor, losses: Tensor) -> Tensor:
    """Linear datamodeling score: rank correlation, per query, of predicted and real losses over subset models.

    A model trained on a subset is predicted to have the query loss -sum of its points' influence, up to a constant
    (Park et al. 2023, arXiv 2303.14186).

    Args:
        influence: [n, m], positive = helpful.
        subsets: membership, [M, n], bool.
        losses: query losses of the models trained on them, [M, m].

    Returns:
        [m], in [-1, 1].
    """
    predicted = -(subsets.to(influence) @ influence)  # [M, m]
    x = torch.stack([_ranks(column) for column in predicted.T])  # [m, M]
    y = torch.stack([_ranks(column) for column in losses.T])
    return _correlation(x, y)


def loo_correlation(influence: Tensor, rises: Tensor) -> float:
    """Correlation of predicted with real leave-one-out effects, over all pairs.

    Args:
        influence: of the removed points on the queries, [r, m].
        rises: real rise of the query loss after refitting without each of the same points, [r, m].
    """
    return pearson(influence, rises)


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


def _correlation(x: Tensor, y: Tensor) -> Tensor:
    x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)  # [k, n]
    cosine: Tensor = (x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1))
    return cosine
