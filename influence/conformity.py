"""How well a given label fits its point, by the trusted queries that lie near it.

The conformity of Vovk, Gammerman and Shafer (2005, Algorithmic Learning in a Random World, section 3.1): the distance
to the nearest queries of other labels, over that to the nearest of its own. It sees no model, so that an error that the
model learned is no excuse, and no train label, so that wrong neighbours do not vouch for each other. `harmful` adds it
to influence, which errs elsewhere.

Notation: n points, m queries, d features. float64 inside.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from influence.curvature.base import AllReduce, alone
from influence.errors import InfluenceError
from influence.sharding import WHOLE, Share

NEAREST = 5  # 3 to 10 find about as much; of rare labels a query set has no more
SEEKING = 256  # points whose distances are in memory at a time


@dataclass(frozen=True)
class Conformity:
    """Log ratio of distances: above 0 the label's own queries are nearer; NaN where no or every query has the label.

    Attributes:
        points: [n].
        queries: each by the other queries, [m].
    """

    points: Tensor
    queries: Tensor


def label_conformity(
    inputs: Tensor,
    labels: Tensor,
    query_inputs: Tensor,
    query_labels: Tensor,
    k: int = NEAREST,
    share: Share = WHOLE,
    all_reduce: AllReduce = alone,
) -> Conformity:
    """Compare given labels with those of the k nearest queries of the label, and of the others.

    Args:
        inputs: of the points, [n, d].
        labels: given labels, [n], int64.
        query_inputs: [m, d].
        query_labels: taken to be right, [m], int64.
        k: at least 1; where a label has fewer queries, all of them.
        share: this rank's, of the points; every rank holds the inputs of all.
        all_reduce: sums a tensor over ranks, in place.

    Raises:
        InfluenceError: k is below 1, the numbers of features differ, or inputs are not finite.
    """
    points, queries = inputs.flatten(1), query_inputs.flatten(1)
    _check(points, queries, k)
    center = queries.double().mean(0)  # an expanded square loses digits far from the origin
    asked = _Asked(queries.double() - center, query_labels.to(queries.device), k)
    labels = labels.to(points.device)
    found = asked.inputs.new_zeros(len(points))
    parts = torch.arange(len(points), device=points.device).split(SEEKING)
    for rows in (parts[part] for part in share.of(len(parts))):
        found[rows] = _log_ratio(points[rows].double() - center, labels[rows], asked)
    all_reduce(found)
    every = torch.arange(len(queries), device=queries.device).split(SEEKING)
    own = [_log_ratio(asked.inputs[rows], asked.labels[rows], asked, itself=rows) for rows in every]
    return Conformity(found, torch.cat(own))


@dataclass(frozen=True)
class _Asked:
    """The queries, centered, [m, d], their labels, [m], and how many of them are asked."""

    inputs: Tensor
    labels: Tensor
    k: int


def _check(points: Tensor, queries: Tensor, k: int) -> None:
    if k < 1 or points.shape[1] != queries.shape[1]:
        given = f"k = {k}, points of {points.shape[1]} and queries of {queries.shape[1]} features"
        raise InfluenceError(f"{given}: give k >= 1 and as many features")
    for name, rows in (("point", points), ("query", queries)):
        finite = torch.isfinite(rows).all(1)
        if not bool(finite.all()):
            raise InfluenceError(f"inputs of {name} {int((~finite).nonzero()[0])} are not finite")


def _log_ratio(inputs: Tensor, labels: Tensor, asked: _Asked, itself: Tensor | None = None) -> Tensor:
    """Of some rows, [rows]; those that are queries are not among their own neighbours."""
    distances = torch.cdist(inputs, asked.inputs)  # [rows, m]
    if itself is not None:
        distances.scatter_(1, itself[:, None], torch.inf)
    same = labels[:, None] == asked.labels
    near = _mean_of_nearest(distances.masked_fill(~same, torch.inf), asked.k)
    return _mean_of_nearest(distances.masked_fill(same, torch.inf), asked.k).log() - near.log()


def _mean_of_nearest(distances: Tensor, k: int) -> Tensor:
    """Of the k smallest finite ones of each row, NaN where there is none, [rows]."""
    nearest = distances.topk(min(k, distances.shape[1]), dim=1, largest=False).values
    mean = nearest.where(nearest.isfinite(), torch.nan).nanmean(1)
    return mean.clamp(min=torch.finfo(mean.dtype).tiny)  # a copy of a query is at distance 0; a NaN stays
