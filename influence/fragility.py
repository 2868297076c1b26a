"""How far scores move when what should not matter much is changed: query by query, since a mean hides the worst.

Basu et al. 2021 (arXiv 2006.14651): influence on deep networks depends on damping, depth, width and weight decay, and
differs strongly from query to query.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from influence.errors import InfluenceError
from influence.validation import spearman

LOW, HIGH = 0.1, 0.9


@dataclass(frozen=True)
class Spread:
    """A figure of each query, summed up: median, 10 % and 90 % quantile, and the share of queries below a bound."""

    median: float
    low: float
    high: float
    below: float


def rank_agreement(varied: Tensor, given: Tensor) -> Tensor:
    """Rank correlation over the train points, for each query, of varied scores with those given.

    Args:
        varied: [n, m].
        given: [n, m].

    Returns:
        [m]; 0 where one of them is the same for all points.

    Raises:
        InfluenceError: the scores are of other points or queries, or not finite.
    """
    if varied.shape != given.shape or varied.ndim != 2:
        raise InfluenceError(
            f"scores {list(varied.shape)} and {list(given.shape)}: give both [n, m], of the same points and queries"
        )
    if not (varied.isfinite().all() and given.isfinite().all()):
        raise InfluenceError("scores that are NaN or infinite have no ranks: find out which point gave them")
    found = [spearman(one, other) for one, other in zip(varied.T, given.T, strict=True)]
    return torch.tensor(found, dtype=torch.float64).nan_to_num(0)


def spread(by_query: Tensor, bound: float) -> Spread:
    """Sum up one figure of each query, [m]."""
    quantiles = torch.tensor([0.5, LOW, HIGH], dtype=torch.float64)
    median, low, high = by_query.double().quantile(quantiles).tolist()
    return Spread(median, low, high, float((by_query < bound).double().mean()))
