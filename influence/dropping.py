"""Which points a model in training does better without, read off its head alone.

The gradients of a softmax head are known from its inputs a and its logits: (p - e_y) a', so that one forward pass in
evaluation mode scores a point, without a backward pass and without the head's weights. Influence is on the mean of the
queries, in nats, positive = helpful.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from influence.curvature.base import AllReduce, Curvature, Damping, alone
from influence.factored import Factor
from influence.fisher import Fisher, margin_residuals, residuals
from influence.fitting import fit
from influence.queries import each
from influence.reading import Reading
from influence.scores import PairScorer, stratified_error

BEYOND = 1.645  # standard errors that harm must exceed: 5 % of a normal law lie below
EXACT = Fisher()


@dataclass(frozen=True)
class HeadPoints:
    """All that the gradients of B points in a softmax head depend on.

    Attributes:
        inputs: of the head, 1 appended where it has a bias, [B, i], float64.
        logits: [B, C], float64.
        labels: given labels, [B], int64.
    """

    inputs: Tensor
    logits: Tensor
    labels: Tensor


@dataclass(frozen=True)
class HeadInfluence:
    """Of n points on the mean of the queries, through the head; nats, positive = helpful, [n], float64.

    Attributes:
        mean: over the queries.
        error: its standard error over the queries, stratified by class.
    """

    mean: Tensor
    error: Tensor


class HeadScorer:
    """Scores points by the head of one model, as it stands.

    Args:
        curvature: of the head alone, not fitted.
        passes: called once per pass: this rank's points in training.
        queries: all of them.
        points: n, the number of points in training, over all ranks.
        damping: of the head.
        all_reduce: sums a float64 tensor over ranks, in place.
    """

    def __init__(
        self,
        curvature: Curvature,
        passes: Callable[[], Iterable[HeadPoints]],
        queries: HeadPoints,
        points: int,
        damping: Damping,
        all_reduce: AllReduce = alone,
    ) -> None:
        (self._name,), self._labels = curvature.blocks, queries.labels
        fit([curvature], lambda: ((self._rooted(part), torch.ones(len(part.labels))) for part in passes()), all_reduce)
        curvature.finish(damping)
        asked = each([self._reading(queries, margin_residuals(queries.logits, queries.labels))], len(queries.labels))
        self._scorer = PairScorer(curvature, asked, points, own=False)

    def score(self, points: HeadPoints) -> HeadInfluence:
        """Influence of some points on the mean of the queries."""
        reading = self._reading(points, residuals(points.logits.softmax(1), points.labels))
        pairs = self._scorer.score(reading.losses).influence  # [B, m]
        return HeadInfluence(pairs.mean(1), stratified_error(pairs, self._labels))

    def _rooted(self, points: HeadPoints) -> Reading:
        probabilities = points.logits.softmax(1)
        roots = EXACT.roots(probabilities, points.labels, points.labels)
        reading = self._reading(points, residuals(probabilities, points.labels))
        return Reading(reading.logits, reading.labels, reading.losses, {self._name: self._factor(points, roots)})

    def _reading(self, points: HeadPoints, cotangents: Tensor) -> Reading:
        return Reading(points.logits, points.labels, {self._name: self._factor(points, cotangents)})

    @staticmethod
    def _factor(points: HeadPoints, cotangents: Tensor) -> Factor:
        return Factor(points.inputs[:, None], cotangents[..., None, :])


def worst(found: HeadInfluence, eligible: Tensor) -> Tensor:
    """The points that harm beyond their error, the most harmful first, ties in the order of the points.

    Args:
        found: of n points.
        eligible: who may be dropped, [n], bool.

    Returns:
        Their rows, [k].
    """
    harmful = eligible & (found.mean + BEYOND * found.error < 0)
    order = found.mean.argsort(stable=True)
    return order[harmful[order]]
