"""The contract of a curvature: an approximation H of the Hessian of the mean training loss, damped, block by block.

Points enter with weight 1, or 0 when they are not in the train set: H = (1/n) sum_b w_b H_b + damping, n = sum_b w_b.
Its life: `passes` times over the data, `accumulate` every batch, then `reduce` over the ranks; `finish`; then `solve`.
`finish` may be called again with another damping; everything accumulated stays as it is.
Sums over batches and ranks are float64, so that their order moves results only in the last digits.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from influence.blocks import Shapes
from influence.errors import InfluenceError
from influence.factored import Factors, Gradients, dots, total

DampingKind = Literal["absolute", "mean_eig", "horizon"]
AllReduce = Callable[[Tensor], None]
Snapshot = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True)
class Damping:
    """What is added to every eigenvalue of a block.

    Attributes:
        kind: `absolute`: value itself. `mean_eig`: value times the mean eigenvalue of the block. `horizon`: what a run
            of finite length leaves undetermined, 1 / value + weight_decay, where value = sum_t lr_t / (1 - momentum).
        value: positive.
        weight_decay: of the trainer; for `horizon` only.
    """

    kind: DampingKind
    value: float
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(DampingKind):
            raise InfluenceError(f"damping kind {self.kind!r}: use one of {', '.join(get_args(DampingKind))}")
        if not (isfinite(self.value) and self.value > 0):
            raise InfluenceError(f"damping value {self.value}: give a positive number")
        if self.weight_decay < 0 or (self.weight_decay and self.kind != "horizon"):
            raise InfluenceError(f"weight_decay {self.weight_decay}: give at least 0, and only with kind 'horizon'")

    def resolve(self, mean_eigenvalue: float) -> float:
        """The number that is added, for a block of that mean eigenvalue.

        Raises:
            InfluenceError: `mean_eig` of a block without curvature would be 0.
        """
        if self.kind == "absolute":
            return self.value
        if self.kind == "horizon":
            return 1 / self.value + self.weight_decay
        if not mean_eigenvalue > 0:
            raise InfluenceError("the block has no curvature, so 'mean_eig' damping is 0; use 'absolute'")
        return self.value * mean_eigenvalue


@dataclass(frozen=True)
class Diagnostics:
    """How trustworthy the solves of one block are.

    Attributes:
        residual: ||(H + damping) solve(v) - v|| / ||v|| for a fixed probe v.
        effective_dimension: sum of eigenvalue / (eigenvalue + damping): how many directions the data determine.
        condition: largest over smallest damped eigenvalue.
        damping: the resolved number.
    """

    residual: float
    effective_dimension: float
    condition: float
    damping: float


@dataclass(frozen=True)
class Own:
    """What each point's gradient g says of itself; float64.

    Attributes:
        self_influence: g' H^-1 g >= 0, without 1/n, [B].
        squared_step: ||H^-1 g||^2, [B], if it was asked for: how far its removal moves the parameters, times n.
    """

    self_influence: Tensor
    squared_step: Tensor | None = None

    @classmethod
    def sum(cls, blocks: Sequence["Own"]) -> "Own":
        """Of several blocks, of the same points."""
        steps = [one.squared_step for one in blocks if one.squared_step is not None]
        return cls(
            torch.stack([one.self_influence for one in blocks]).sum(0), torch.stack(steps).sum(0) if steps else None
        )

    @classmethod
    def join(cls, parts: Sequence["Own"]) -> "Own":
        """Of several runs of points, one after the other."""
        steps = [one.squared_step for one in parts if one.squared_step is not None]
        return cls(torch.cat([one.self_influence for one in parts]), torch.cat(steps) if steps else None)


@dataclass(frozen=True)
class Scored:
    """B points against k queries, float64.

    Attributes:
        dots: g_q' H^-1 g_b, without 1/n, [B, k].
        own: the points' own terms, if they were asked for.
    """

    dots: Tensor
    own: Own | None

    @classmethod
    def sum(cls, blocks: Sequence["Scored"]) -> "Scored":
        """Of several blocks, of the same points."""
        own = [one.own for one in blocks if one.own is not None]
        return cls(torch.stack([one.dots for one in blocks]).sum(0), Own.sum(own) if own else None)

    @classmethod
    def join(cls, parts: Sequence["Scored"]) -> "Scored":
        """Of several runs of points, one after the other."""
        own = [one.own for one in parts if one.own is not None]
        return cls(torch.cat([one.dots for one in parts]), Own.join(own) if own else None)


class Preconditioned(Protocol):
    """Gradients of queries, solved once and held so that train points are scored against them cheaply.

    Attributes:
        solved: as they are held, by block, [k, ...]; those of other queries, held elsewhere, may take their place.
    """

    solved: Gradients

    def score(self, factors: Factors) -> Scored:
        """Score B points by the factors of their losses."""


class Curvature(Protocol):
    """An approximation of the damped Hessian on some blocks."""

    @property
    def blocks(self) -> tuple[str, ...]:
        """The names of the blocks that it was made for."""

    @property
    def shapes(self) -> Shapes:
        """And their shapes."""

    @property
    def passes(self) -> int:
        """How many times the data are read."""

    def accumulate(self, batch: Factors, weights: Tensor) -> None:
        """Add the Fisher roots of a batch to the current pass.

        Args:
            batch: g of shape [R, B, T, o]; a point's Gauss-Newton matrix is the sum of the outer products of its R
                gradients (`fisher.label_factors`).
            weights: [B], 1 for points in the train set and 0 for others.
        """

    def reduce(self, all_reduce: AllReduce) -> None:
        """End a pass: add up the sums and counts of all ranks; `all_reduce` sums a float64 tensor in place."""

    def finish(self, damping: Damping) -> None:
        """Fix the damping, after the last pass; again for another one."""

    def solve(self, gradients: Gradients) -> Gradients:
        """Damped inverse times k gradients, in their dtype; changes nothing in the curvature."""

    def own(self, factors: Factors, *, step: bool = False) -> Own:
        """The own terms of B points, from the factors of their losses; `step` asks for `squared_step`."""

    def against(self, gradients: Gradients, *, own: bool = False, step: bool = False) -> Preconditioned:
        """Solve the gradients of k queries and hold them, for scores with or without the points' own terms."""

    def diagnostics(self) -> Mapping[str, Diagnostics]:
        """By block, or under the blocks' joined names where the curvature couples them."""


class Restorable(Curvature, Protocol):
    """A curvature whose fit outlives its process."""

    def snapshot(self) -> Snapshot:
        """All that was fitted, by block; what is of the blocks together stands under the first. Not the damping."""

    def restore(self, snapshot: Snapshot) -> None:
        """Take what was fitted by the same kind of curvature on the same blocks, in place of all passes."""


class Solved:
    """The preconditioned queries of a curvature that has no cheaper way than `solve` and `own`.

    Args:
        curvature: finished.
        gradients: of k queries.
        own: whether scores hold the points' own terms.
        step: whether those hold the squared step.
    """

    def __init__(self, curvature: Curvature, gradients: Gradients, *, own: bool = False, step: bool = False) -> None:
        self._curvature, self._own, self._step = curvature, own, step
        self.solved = curvature.solve(gradients)

    def score(self, factors: Factors) -> Scored:
        """Score B points by the factors of their losses."""
        found = total(factors, lambda name, factor: dots(factor, self.solved[name]))
        return Scored(found, self._curvature.own(factors, step=self._step) if self._own else None)


def alone(tensor: Tensor) -> None:
    """The all-reduce of a single process: nothing to add."""


def train_points(count: Tensor) -> float:
    """The number of points that entered, refused when there is none."""
    if count <= 0:
        raise InfluenceError("no point of weight 1 entered the curvature")
    return float(count)
