"""What a point did at the steps at which it was trained on: leave-one-out of one step, all later batches as they were.

SGD on batches of B points, with learning rate eta, momentum mu and weight decay w in the gradient, is

    v' = mu v + (1/B) sum_b g_b + w theta        theta' = theta - eta v'.

Dropping point b from the batch of step t (B stays) moves v' by -g_b / B, and theta' by eta g_b / B, exactly. A later
step takes such a move (dtheta, dv) on by its Gauss-Newton matrix H = (1/B) sum_b sum_r s_rb s_rb' and A = H + w:

    dv' = mu dv + A dtheta        dtheta' = dtheta - eta dv'.

Backwards, let the move of the final parameters be P dtheta + Q dv after step t, so P = I, Q = 0 after the last. With
E = eta P - Q, what is left of a unit of gradient that step t leaves out,

    E <- eta P + mu E        effect of point b at step t = E g_b / B        P <- P - E A        (Q = -mu E).

Without momentum this is the data value embedding of Wang et al. 2024 (arXiv 2412.09538). On a quadratic it is exact.
P need not begin as I: with the gradients of m queries for its rows, the effects are influence on those queries, in the
memory of m gradients; with I they are embeddings, for any query, in that of k^2 numbers.

In networks trained fast, leaving one point out of one early step is followed by another course of training: there the
exact derivative in the point's weight says little of the real run, and this, its Gauss-Newton form, no more. What one
point did is to be trusted for the last steps; summed over steps it predicts the removal of many points from all.

    trajectory = Trajectory(Reader(model, task, blocks), momentum=0.9)
    for batch, points in batches:
        trajectory.record(batch, points, rate)
        ...  # the step itself
    scores = trajectory.influence(queries, count)  # scores[i, q] < 0: point i harmed query q
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import Generic

import torch
from torch import Tensor

from influence.curvature.joint import Joint
from influence.curvature.products import combine, sum_of_blocks
from influence.errors import InfluenceError
from influence.factored import Factors, Gradients, dots, materialise, total
from influence.reader import Reader
from influence.reading import Batch

LARGEST = 8192  # numbers of an embedding: two matrices of 256 MB in float32


@dataclass(frozen=True)
class Step:
    """One step of SGD on the mean loss of a batch, at the parameters before it.

    Attributes:
        points: row of each point of the batch among all points, [B], int64.
        losses: gradients of the losses without the regulariser, g of shape [B, T, o].
        roots: Fisher roots, g of shape [R, B, T, o].
        rate: the learning rate.
    """

    points: Tensor
    losses: Factors
    roots: Factors
    rate: float


def step_effects(
    steps: Sequence[Step], final: Gradients, momentum: float = 0.0, weight_decay: float = 0.0
) -> Iterator[Tensor]:
    """What leaving each point out of each step changes in the end, from the last step to the first.

    Args:
        steps: in the order of training.
        final: what P begins as, name -> [m, o, i]: gradients of query losses for influence in nats.
        momentum: mu.
        weight_decay: w.

    Yields:
        For each step, [B, m], float64.

    Raises:
        InfluenceError: learning rate times curvature is so large that effects grow beyond all numbers.
    """
    reach = {name: one.clone() for name, one in final.items()}  # P
    passed = {name: torch.zeros_like(one) for name, one in final.items()}  # E
    for number in reversed(range(len(steps))):
        step = steps[number]
        size = len(step.points)
        for name, one in passed.items():
            one.mul_(momentum).add_(reach[name], alpha=step.rate)
        yield total(step.losses, lambda name, factor: dots(factor, passed[name])) / size
        inner = sum_of_blocks(step.roots, passed)  # [B, m, R]
        for name, one in reach.items():
            one.sub_(combine(step.roots[name], inner) / size).sub_(passed[name], alpha=weight_decay)
        _check_finite(reach, number, step.rate)


def removal_effects(
    steps: Sequence[Step], final: Gradients, count: int, momentum: float = 0.0, weight_decay: float = 0.0
) -> Tensor:
    """The effects of `step_effects` summed over the steps of each of `count` points, [count, m], float64."""
    for number, step in enumerate(steps):
        if not 0 <= int(step.points.min()) <= int(step.points.max()) < count:
            raise InfluenceError(f"step {number} (from 0) has a row outside 0 … {count - 1}; count all train points")
    first = next(iter(final.values()))
    sums = first.new_zeros(count, len(first), dtype=torch.float64)
    effects = step_effects(steps, final, momentum, weight_decay)
    for step, effect in zip(reversed(steps), effects, strict=True):
        sums.index_add_(0, step.points.to(sums.device), effect)
    return sums


class Trajectory(Generic[Batch]):
    """Records the steps of a training loop in one process, as factors; readings are in evaluation mode (no dropout).

    A step's batch is not split over ranks: each records it whole, and may ask for some of the queries.

    A step holds, for each of its points, the inputs and 1 + R gradients at the outputs of every block: 40 kB on
    784-512-256-10 with ten labels. A sampled Fisher, a compressor and recording later steps alone make it less.

    Args:
        reader: of the model in training; needs no cache. It is opened for a recording alone, between steps.
        momentum: of the optimizer, torch's SGD without dampening and Nesterov.
        weight_decay: of the optimizer, in the gradient of every parameter of the blocks.

    Attributes:
        steps: those recorded.
    """

    def __init__(self, reader: Reader[Batch], momentum: float = 0.0, weight_decay: float = 0.0) -> None:
        if not (0 <= momentum < 1 and 0 <= weight_decay < inf):
            raise InfluenceError(
                f"momentum {momentum}, weight decay {weight_decay}: give a momentum in [0, 1) and a weight decay of at "
                "least 0"
            )
        self.steps: list[Step] = []
        self._reader = reader
        self._momentum, self._weight_decay = momentum, weight_decay

    def record(self, batch: Batch, points: Tensor, rate: float) -> None:
        """Keep a step; to be called before the optimizer's.

        Args:
            batch: all B points of the step, on whose mean loss it is made.
            points: row of each among all points, [B], int64.
            rate: the learning rate of this step.
        """
        if not 0 < rate < inf:
            raise InfluenceError(f"learning rate {rate}: give a positive number")
        if points.dtype != torch.int64:
            raise InfluenceError(f"rows of type {points.dtype}: give int64, each point's place among all")
        with self._reader as reader:
            reading = reader.train(batch, len(self.steps), points)
        if len(points) != len(reading.labels):
            raise InfluenceError(f"{len(points)} rows given for a batch of {len(reading.labels)} points; give one each")
        assert reading.roots is not None  # train readings have them
        self.steps.append(Step(points, reading.losses, reading.roots, rate))

    def influence(self, queries: Iterable[Batch], count: int) -> Tensor:
        """Influence of each of `count` points on the loss of every query in the present, final model, [count, m], nats.

        It is the sum over the point's steps of what leaving it out of that step alone would do.
        """
        with self._reader as reader:
            parts = [reader.losses(batch).losses for batch in queries]
        if not parts:
            raise InfluenceError("no query given")
        final = {name: torch.cat([materialise(part[name]) for part in parts]) for name in parts[0]}
        return self._effects(final, count)

    def embeddings(self, count: int) -> Tensor:
        """How leaving each of `count` points out moves the final parameters, [count, k], float64.

        Influence is g_q' times it, g_q the loss gradient of a query with its blocks side by side in model order. It
        takes k^2 numbers: for a few thousand parameters, or a reader that compresses.
        """
        factors = self._recorded()[0].losses
        if (size := sum(factor.elements for factor in factors.values())) > LARGEST:
            raise InfluenceError(
                f"embeddings of {size} parameters: {LARGEST} at most; compress in the reader, or call influence()"
            )
        joint = Joint({name: (factor.g.shape[-1], factor.a.shape[-1]) for name, factor in factors.items()})
        [(dtype, device)] = {(factor.g.dtype, factor.g.device) for factor in factors.values()}
        return self._effects(joint.split(torch.eye(joint.parameters, dtype=dtype, device=device)), count)

    def _effects(self, final: Gradients, count: int) -> Tensor:
        return removal_effects(self._recorded(), final, count, self._momentum, self._weight_decay)

    def _recorded(self) -> list[Step]:
        if not self.steps:
            raise InfluenceError("no step was recorded: call record() before every optimizer step")
        return self.steps


def _check_finite(reach: Gradients, number: int, rate: float) -> None:
    for name, one in reach.items():
        if not one.sum().isfinite():
            raise InfluenceError(
                f"block {name!r}: at step {number} (from 0) the effects of earlier steps grow beyond all numbers: "
                f"learning rate {rate:g} is too large for the curvature; train with a lower one, or record later steps"
            )
