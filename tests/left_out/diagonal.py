"""The diagonal of the Gauss-Newton matrix: the mean square of the Fisher roots, parameter by parameter.

One number for each parameter, streamed; nothing is decomposed, and no point is kept.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from influence.blocks import Block, shapes_of
from influence.curvature.base import AllReduce, Damping, Diagnostics, Own, Preconditioned, Solved, train_points
from influence.curvature.moments import ProductSum
from influence.errors import InfluenceError
from influence.factored import Factor, Factors, Gradients, by_pieces, materialise, pieces


class Diagonal:
    """H = diag(mean_i sum_r G_ri^2), elementwise.

    Args:
        blocks: the blocks.
    """

    passes = 1

    def __init__(self, blocks: Sequence[Block]) -> None:
        self.blocks = tuple(block.name for block in blocks)
        self.shapes = shapes_of(blocks)
        self._sums = {block.name: ProductSum(*block.weight_shape) for block in blocks}
        self._count = torch.zeros((), dtype=torch.float64)
        self._diagonal: Mapping[str, Tensor] = {}  # [o, i], float64
        self._damping: Mapping[str, float] = {}

    def accumulate(self, batch: Factors, weights: Tensor) -> None:
        """Add the squares of the Fisher roots of a batch."""
        if self._diagonal:
            raise InfluenceError("the only pass over the data is over")
        for name, factor in batch.items():
            _add_squares(self._sums[name], factor, weights.to(factor.g.dtype))
        self._count += weights.sum(dtype=torch.float64)

    def reduce(self, all_reduce: AllReduce) -> None:
        """End the pass: sums over points to their mean."""
        all_reduce(self._count)
        points = train_points(self._count)
        sums = {name: one.settle() for name, one in self._sums.items()}
        for one in sums.values():
            all_reduce(one)
            one /= points
        self._diagonal = sums

    def finish(self, damping: Damping) -> None:
        """Fix the damping of every block; again for another one."""
        if not self._diagonal:
            raise InfluenceError("the squares of the Fisher roots have not been reduced")
        self._damping = {name: damping.resolve(float(one.mean())) for name, one in self._diagonal.items()}

    def solve(self, gradients: Gradients) -> Gradients:
        """Damped inverse times k gradients, in their dtype."""
        return {name: one / self._damped(name).to(one) for name, one in gradients.items()}

    def own(self, factors: Factors, *, step: bool = False) -> Own:
        """The own terms of B points."""
        return Own.sum([_own(factor, self._damped(name).to(factor.g), step) for name, factor in factors.items()])

    def against(self, gradients: Gradients, *, own: bool = False, step: bool = False) -> Preconditioned:
        """Solve the gradients of k queries and hold them."""
        return Solved(self, gradients, own=own, step=step)

    def diagnostics(self) -> Mapping[str, Diagnostics]:
        """By block. Of the diagonal itself, whose inverse has no residual: the matrix was never seen."""
        return {name: self._diagnose(name) for name in self.blocks}

    def _diagnose(self, name: str) -> Diagnostics:
        damped = self._damped(name)
        return Diagnostics(
            residual=0.0,
            effective_dimension=float((self._diagonal[name] / damped).sum()),
            condition=float(damped.max() / damped.min()),
            damping=self._damping[name],
        )

    def _damped(self, name: str) -> Tensor:
        if not self._damping:
            raise InfluenceError("the diagonal has no damping yet: call finish() after its pass")
        if name not in self._damping:
            raise InfluenceError(f"block {name!r} was not fitted; there are {', '.join(self._damping)}")
        return self._diagonal[name] + self._damping[name]


def _add_squares(total: ProductSum, roots: Factor, weights: Tensor) -> None:
    """Add sum_b w_b sum_r G_rb^2, [o, i]."""
    if roots.a.shape[1] == 1:  # the squares of a rank-one gradient have rank one
        total.add(roots.g[:, :, 0].square().sum(0) * weights[:, None], roots.a[:, 0].square())
        return
    for r in range(len(roots.g)):
        one = Factor(roots.a, roots.g[r])
        for piece in pieces(one):
            total.add_rows(weights[piece], materialise(one[piece]).square_())  # [b, o, i]


def _own(factor: Factor, damped: Tensor, step: bool) -> Own:
    """Of one block; sum_kl G_kl^2 / damped_kl, and / damped_kl^2 for the step."""
    weights = torch.stack([damped.reciprocal(), damped.reciprocal().square()][: 1 + step])  # [1 or 2, o, i]
    if factor.a.shape[1] == 1:
        a, g = factor.a[:, 0].square(), factor.g[:, 0].square()
        found = torch.stack([(g @ weight * a).sum(1) for weight in weights], 1)
    else:
        found = by_pieces(factor, lambda full: full.flatten(1).square() @ weights.flatten(1).T)
    return Own(found[:, 0].double(), found[:, 1].double() if step else None)
