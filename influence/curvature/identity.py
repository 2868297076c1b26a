"""No curvature at all: the yardstick that any other has to beat."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from influence.blocks import Block, shapes_of
from influence.curvature.base import AllReduce, Damping, Diagnostics, Own, Preconditioned, Snapshot, Solved
from influence.errors import InfluenceError
from influence.factored import Factors, Gradients, squared_norms, total


class Identity:
    """H = damping I. With damping 1, influence is the inner product of two gradients over n.

    Args:
        blocks: the blocks.
    """

    passes = 0

    def __init__(self, blocks: Sequence[Block]) -> None:
        self.blocks = tuple(block.name for block in blocks)
        self.shapes = shapes_of(blocks)
        self.damping = 0.0

    def accumulate(self, batch: Factors, weights: Tensor) -> None:
        """Nothing: there is no pass."""

    def reduce(self, all_reduce: AllReduce) -> None:
        """Nothing: there is no pass."""

    def snapshot(self) -> Snapshot:
        """Nothing."""
        return {name: {} for name in self.blocks}

    def restore(self, snapshot: Snapshot) -> None:
        """Nothing."""

    def finish(self, damping: Damping) -> None:
        """Fix the damping; again for another one."""
        self.damping = damping.resolve(0.0)

    def solve(self, gradients: Gradients) -> Gradients:
        """The gradients over the damping."""
        damping = self._finished()
        return {name: one / damping for name, one in gradients.items()}

    def own(self, factors: Factors, *, step: bool = False) -> Own:
        """The own terms of B points."""
        damping = self._finished()
        squares = total(factors, lambda _, factor: squared_norms(factor))
        return Own(squares / damping, squares / damping**2 if step else None)

    def against(self, gradients: Gradients, *, own: bool = False, step: bool = False) -> Preconditioned:
        """Solve the gradients of k queries and hold them."""
        return Solved(self, gradients, own=own, step=step)

    def diagnostics(self) -> Mapping[str, Diagnostics]:
        """By block."""
        return {name: Diagnostics(0.0, 0.0, 1.0, self._finished()) for name in self.blocks}

    def _finished(self) -> float:
        if self.damping <= 0:
            raise InfluenceError("the identity has no damping yet: call finish()")
        return self.damping
