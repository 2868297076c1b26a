"""Influence of train points on query points, and its summary per train point.

    T[i, q] = (1/n) g_q' H^-1 g_i

is the predicted rise, in nats, of query q's loss if point i is REMOVED: positive = helpful, negative = harmful. The
predicted fall of the query's margin is its classification influence, in logits, of the same sign:
T[i, q] = (1 - p_y(q)) CI[i, q]. Scores of several checkpoints of one model are added before anything is averaged.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from influence.curvature.base import Curvature, Own, Preconditioned
from influence.errors import InfluenceError
from influence.factored import Factors
from influence.queries import Groups, Queries


@dataclass(frozen=True)
class PairScores:
    """Influence of b train points on m queries; add those of several checkpoints.

    Attributes:
        influence: nats of query loss, positive = helpful, [b, m], float64.
        classification: classification influence, logits of query margin, positive = helpful, [b, m], float64; on texts,
            which have no margin, influence once more.
        given: the points' own terms, without 1/n, if they were asked for.
    """

    influence: Tensor
    classification: Tensor
    given: Own | None

    @property
    def own(self) -> Own:
        """The points' own terms.

        Raises:
            InfluenceError: they were not asked for.
        """
        if self.given is None:
            raise InfluenceError("the points' own terms were not asked for: score with own=True")
        return self.given

    @property
    def self_influence(self) -> Tensor:
        """Of the own terms, [b]."""
        return self.own.self_influence

    def __add__(self, other: "PairScores") -> "PairScores":
        return PairScores(
            self.influence + other.influence,
            self.classification + other.classification,
            None if self.given is None else Own.sum([self.own, other.own]),
        )


@dataclass(frozen=True)
class GroupScores:
    """Influence of b train points on the mean of each of k groups of queries.

    Attributes:
        influence: nats, positive = helpful, [b, k], float64; NaN for a group without queries.
        mean: on the mean of all queries, [b].
        own: the points' own terms, without 1/n.
    """

    influence: Tensor
    mean: Tensor
    own: Own


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
        classification_influence: mean over queries, logits, positive = helpful, [b]; NaN where there are no classes.
        own: the points' own terms.
        helpful: queries whose loss would rise most.
        harmful: queries whose loss would fall most.
    """

    influence: Tensor
    influence_se: Tensor
    by_class: Tensor
    classification_influence: Tensor
    own: Own
    helpful: TopQueries
    harmful: TopQueries


class SolvedScorer:
    """Scores train points against each of some solved queries.

    Args:
        held: the queries.
        doubt: of each, as in `Queries`, [m].
        points: n, the number of points in the train set: those of weight 1.
    """

    def __init__(self, held: Preconditioned, doubt: Tensor, points: int) -> None:
        self._held, self._doubt, self._points = held, doubt, _positive(points)

    def score(self, losses: Factors) -> PairScores:
        """Influence of b train points, from the factors of their losses."""
        found = self._held.score(losses)
        classification = found.dots / self._points
        return PairScores(classification * self._doubt, classification, found.own)


class PairScorer(SolvedScorer):
    """Solves every query, and scores train points against each.

    Args:
        curvature: finished.
        queries: on its blocks.
        points: n, the number of points in the train set: those of weight 1.
        own: whether scores hold the points' own terms, for which some curvatures solve for every point.
    """

    def __init__(self, curvature: Curvature, queries: Queries, points: int, *, own: bool = True) -> None:
        super().__init__(curvature.against(queries.gradients, own=own, step=own), queries.doubt, points)


class GroupScorer:
    """Holds the solved mean gradients of groups of queries: for means, at a cost that does not grow with the queries.

    Args:
        curvature: finished.
        groups: on its blocks.
        points: n, the number of points in the train set: those of weight 1.
        step: whether own terms hold the squared step.
    """

    def __init__(self, curvature: Curvature, groups: Groups, points: int, *, step: bool = False) -> None:
        self._points = _positive(points)
        self._sizes = groups.sizes.double()
        self._held = curvature.against(groups.gradients, own=True, step=step)

    def score(self, losses: Factors) -> GroupScores:
        """Influence of b train points, from the factors of their losses."""
        found = self._held.score(losses)
        assert found.own is not None
        influence = found.dots / self._points  # [b, k]
        mean = influence @ (self._sizes / self._sizes.sum())
        return GroupScores(influence.masked_fill(self._sizes == 0, torch.nan), mean, found.own)


def _positive(points: int) -> int:
    if points < 1:
        raise InfluenceError(f"{points} train points: give at least one")
    return points


def summarize_chunk(pairs: PairScores, query_labels: Tensor | None, classes: int, top: int = 5) -> ChunkScores:
    """Reduce the queries away.

    Args:
        pairs: of a chunk, added over checkpoints.
        query_labels: [m], int64 in [0, classes); None where queries have no classes.
        classes: C; 0 then.
        top: how many queries of each sign to keep.

    Raises:
        InfluenceError: fewer than two queries, so that there is no standard error.
    """
    influence = pairs.influence  # [b, m]
    if query_labels is None:
        strata = torch.zeros(influence.shape[1], dtype=torch.int64, device=influence.device)
        by_class, on_margins = influence.new_empty(len(influence), 0), influence.new_full((len(influence),), torch.nan)
    else:
        strata = query_labels
        by_class = _class_means(influence, one_hot(query_labels, classes).to(influence))
        on_margins = pairs.classification.mean(1)
    return ChunkScores(
        influence=influence.mean(1),
        influence_se=stratified_error(influence, strata),
        by_class=by_class,
        classification_influence=on_margins,
        own=pairs.own,
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
