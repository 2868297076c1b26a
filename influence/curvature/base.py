"""The contract of a curvature: an approximation H of the Hessian of the mean training loss, damped, block by block.

Points enter with weight 1, or 0 when they are not in the train set: H = (1/n) sum_b w_b H_b + damping, n = sum_b w_b.
Its life: `passes` times over the data, `accumulate` every batch, then `reduce` over the ranks; `finish`; then `solve`.
Sums over batches and ranks are float64, so that their order moves results only in the last digits.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Literal, Protocol, TypeVar, get_args

from torch import Tensor

from influence.errors import InfluenceError
from influence.factored import Factor

DampingKind = Literal["absolute", "mean_eig", "horizon"]
AllReduce = Callable[[Tensor], None]
Batch_contra = TypeVar("Batch_contra", contravariant=True)


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


class Curvature(Protocol[Batch_contra]):
    """An approximation of the damped Hessian on some blocks."""

    @property
    def passes(self) -> int:
        """How many times the data are read."""

    def accumulate(self, batch: Batch_contra, weights: Tensor) -> None:
        """Add a batch to the current pass; weights [B] are 1 for points in the train set and 0 for others."""

    def reduce(self, all_reduce: AllReduce) -> None:
        """End a pass: add up the sums and counts of all ranks; `all_reduce` sums a float64 tensor in place."""

    def finish(self, damping: Damping) -> None:
        """Fix the damping, after the last pass."""

    def solve(self, name: str, gradients: Tensor) -> Tensor:
        """Damped inverse times gradients of a block, [k, o, i] -> [k, o, i]."""

    def whiten(self, name: str, factor: Factor) -> Tensor:
        """Damped inverse square root times the gradients of B points, in a fixed basis, [B, o * i].

        Inner products of whitened gradients are g' H^-1 g.
        """

    def diagnostics(self) -> Mapping[str, Diagnostics]:
        """By block."""


def alone(tensor: Tensor) -> None:
    """The all-reduce of a single process: nothing to add."""


def train_points(count: Tensor) -> float:
    """The number of points that entered, refused when there is none."""
    if count <= 0:
        raise InfluenceError("no point of weight 1 entered the curvature")
    return float(count)
