"""Influence of train points on query points, streamed by chunks, and its summary per train point.

    T[i, q] = (1/n) g_q' H^-1 g_i

is the predicted rise, in nats, of query q's loss if point i is REMOVED: positive = helpful, negative = harmful.
Gradients on both sides are whitened, so T is a matrix product and self-influence g_i' H^-1 g_i a squared norm.
T of several checkpoints of one model is added before anything is averaged.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from influence.curvature.base import Curvature
from influence.errors import InfluenceError
from influence.factored import Factor, Factors

DENSE_ELEMENTS = 1 << 24  # of whitened train gradients in memory at a time


@dataclass(frozen=True)
class PairScores:
    """Influence of b train points on m queries; add those of several checkpoints.

    Attributes:
        influence: nats of query loss, positive = helpful, [b, m], float64.
        self_influence: g' H^-1 g >= 0, without 1/n, [b], float64.
    """

    influence: Tensor
    self_influence: Tensor

    def __add__(self, other: "PairScores") -> "PairScores":
        return PairScores(self.influence + other.influence, self.self_influence + other.self_influence)


@dataclass(frozen=True)
class TopQueries:
    """The queries on which a point's influence is strongest in one direction, strongest first.

    Attributes:
        index: row of the query, [b, k], int64; -1 where fewer than k queries have that sign.
        influence: nats, [b, k]; NaN there.
    """

    index: Tensor
    influence: Tensor


@dataclass(frozen=True)
class ChunkScores:
    """What is kept of b train points; float64.

    Attributes:
        influence: mean over queries, nats, positive = helpful, [b].
        influence_se: its standard error over queries, stratified by class, [b].
        by_class: mean over the queries of each class, [b, C]; NaN for a class without queries.
        self_influence: [b].
        helpful: queries whose loss would rise most.
        harmful: queries whose loss would fall most.
    """

    influence: Tensor
    influence_se: Tensor
    by_class: Tensor
    self_influence: Tensor
    helpful: TopQueries
    harmful: TopQueries


class Scorer:
    """Holds the whitened gradients of all queries and scores train points against them.

    Args:
        curvature: finished.
        points: n, the number of points in the train set: those of weight 1.
        queries: m.
    """

    def __init__(self, curvature: Curvature[Any], points: int, queries: int) -> None:
        if points < 1 or queries < 1:
            raise InfluenceError(f"{points} train points and {queries} queries: give at least one of each")
        self._curvature = curvature
        self._points = points
        self._queries = queries
        self._seen = 0
        self._whitened: dict[str, Tensor] = {}

    def add_queries(self, factors: Factors) -> None:
        """Add the loss gradients of the next queries, in the order in which they are numbered."""
        rows = _rows(factors)
        if self._seen + rows > self._queries:
            raise InfluenceError(f"{self._seen + rows} queries given, {self._queries} announced")
        for name, factor in factors.items():
            whitened = self._curvature.whiten(name, factor)  # [rows, o i]
            if name not in self._whitened:  # allocated once: a list of batches would hold it twice when joined
                self._whitened[name] = whitened.new_empty(self._queries, whitened.shape[1])
            self._whitened[name][self._seen : self._seen + rows] = whitened
        self._seen += rows

    def score(self, factors: Factors) -> PairScores:
        """Influence of train points on every query.

        Args:
            factors: loss gradients of b train points.
        """
        if self._seen < self._queries:
            raise InfluenceError(f"{self._seen} queries given, {self._queries} announced")
        if factors.keys() != self._whitened.keys():
            raise InfluenceError(f"blocks {sorted(factors)} given, queries have {sorted(self._whitened)}")
        rows = _rows(factors)
        influence = torch.zeros(rows, self._queries, dtype=torch.float64)
        self_influence = torch.zeros(rows, dtype=torch.float64)
        for name, factor in factors.items():
            queries = self._whitened[name]
            step = max(1, DENSE_ELEMENTS // queries.shape[1])
            for start in range(0, rows, step):
                part = slice(start, start + step)
                train = self._curvature.whiten(name, Factor(factor.a[part], factor.g[part]))  # [step, o i]
                influence[part] += train @ queries.T
                self_influence[part] += torch.linalg.vector_norm(train, dim=1).double().square()
        return PairScores(influence / self._points, self_influence)


def summarize_chunk(pairs: PairScores, query_labels: Tensor, classes: int, top: int = 5) -> ChunkScores:
    """Reduce the queries away.

    Args:
        pairs: of a chunk, added over checkpoints.
        query_labels: [m], int64 in [0, classes).
        classes: C.
        top: how many queries of each sign to keep.

    Raises:
        InfluenceError: fewer than two queries, so that there is no standard error.
    """
    influence = pairs.influence  # [b, m]
    return ChunkScores(
        influence=influence.mean(1),
        influence_se=stratified_error(influence, query_labels),
        by_class=_class_means(influence, one_hot(query_labels, classes).to(influence)),
        self_influence=pairs.self_influence,
        helpful=_top(influence, top, sign=1),
        harmful=_top(influence, top, sign=-1),
    )


def stratified_error(values: Tensor, labels: Tensor) -> Tensor:
    """Standard error of the mean over queries, when each class has its own mean.

    The mean is sum_c (m_c / m) mean_c, so its variance is sum_c (m_c / m)^2 var_c / m_c, var_c within the class.
    Classes of a single query have no variance of their own and form one stratum together (collapsed strata; Cochran
    1977, 5A.12); a lone one joins the smallest other class.

    Args:
        values: [b, m].
        labels: class of each query, [m], int64.

    Returns:
        [b].
    """
    strata = one_hot(_collapse(labels)).to(values)  # [m, s]
    sizes = strata.sum(0)  # [s]
    centred = values - _class_means(values, strata) @ strata.T  # [b, m]
    variances = centred.square() @ strata / (sizes - 1)  # [b, s]
    return (variances @ (sizes / len(labels) ** 2)).sqrt()


def _collapse(labels: Tensor) -> Tensor:
    if len(labels) < 2:
        raise InfluenceError(f"{len(labels)} query: a standard error needs at least two")
    _, strata, sizes = torch.unique(labels, return_inverse=True, return_counts=True)
    single = (sizes == 1)[strata]  # [m]
    if single.sum() == 1:
        sizes[sizes == 1] = len(labels)
        single |= strata == sizes.argmin()
    compact: Tensor = torch.unique(strata.masked_fill(single, -1), return_inverse=True)[1]
    return compact


def _class_means(values: Tensor, members: Tensor) -> Tensor:
    sums: Tensor = values @ members  # [b, m] @ [m, C] -> [b, C]
    return sums / members.sum(0)  # 0 / 0 = NaN for an empty class


def _top(influence: Tensor, count: int, sign: int) -> TopQueries:
    values, index = (sign * influence).topk(min(count, influence.shape[1]), dim=1)  # [b, k]
    wrong = values <= 0
    return TopQueries(index.masked_fill(wrong, -1), (sign * values).masked_fill(wrong, torch.nan))


def _rows(factors: Factors) -> int:
    return len(next(iter(factors.values())).g)
