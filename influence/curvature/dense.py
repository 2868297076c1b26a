"""The exact damped Gauss-Newton matrix of some blocks together, cross terms included.

    H = (1/n) sum_i sum_r vec(G_ri) vec(G_ri)'  [p, p],  blocks one after the other, each row-major in [o, i]

For blocks of a single position, with roots s_r (x) a of a point and S = sum_r s_r s_r', the entries between outputs c
and d of any two blocks are sum_i S_cd a a': no gradient is formed, whatever the number of roots. This is what makes a
softmax head cheap, where it is also the Hessian of the cross-entropy itself. Float64 throughout.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from influence.blocks import Block, Shapes
from influence.curvature.base import (
    AllReduce,
    Damping,
    Diagnostics,
    Own,
    Preconditioned,
    Snapshot,
    Solved,
    train_points,
)
from influence.curvature.joint import Joint, runs
from influence.curvature.moments import ProductSum
from influence.errors import InfluenceError
from influence.factored import Factor, Factors, Gradients

LARGEST = 4096  # parameters: 128 MB, and a second for one Cholesky on one core


class GaussNewton:
    """Exact damped Gauss-Newton.

    Args:
        blocks: of at most 4,096 parameters in all.

    Raises:
        InfluenceError: they have more.
    """

    passes = 1

    def __init__(self, blocks: Sequence[Block]) -> None:
        self.joint = Joint.of(blocks)
        size = self.joint.parameters
        if size > LARGEST:
            raise InfluenceError(
                f"{self.joint.name} has {size} parameters, the exact solver takes up to {LARGEST}; use EK-FAC, PCG or "
                "the dual on it, or fewer blocks"
            )
        self._sum = ProductSum(size, size, blocks[0].device)
        self.matrix = self._sum.value  # the sum above the diagonal, then H
        self.damping = 0.0
        self._count = torch.zeros((), dtype=torch.float64)
        self._reduced = False
        self._cholesky = torch.empty(0, dtype=torch.float64)

    @property
    def blocks(self) -> tuple[str, ...]:
        """The names of the blocks."""
        return self.joint.names

    @property
    def shapes(self) -> Shapes:
        """Of the blocks."""
        return self.joint.shapes

    @cached_property
    def eigenvalues(self) -> Tensor:
        """Of the matrix without damping, ascending, [p]."""
        found: Tensor = torch.linalg.eigvalsh(self.matrix)
        return found.clamp(min=0)  # rounding only: the matrix is semidefinite

    def accumulate(self, batch: Factors, weights: Tensor) -> None:
        """Add the Fisher roots of a batch."""
        if self._reduced:
            raise InfluenceError("the only pass of the Gauss-Newton matrix is over")
        root = weights.to(self.matrix).sqrt()[:, None, None]
        factors = [Factor(factor.a.double(), factor.g.double() * root) for factor in self.joint.parts(batch)]
        single = all(factor.a.shape[1] == 1 for factor in factors)
        outputs = sum(factor.g.shape[3] for factor in factors)
        held = outputs**2 + self.joint.parameters if single else len(factors[0].g) * self.joint.parameters
        for run in runs(len(weights), held):
            (self._add_outputs if single else self._add_rows)([factor[run] for factor in factors])
        self._count += weights.sum(dtype=torch.float64).to(self._count)

    def reduce(self, all_reduce: AllReduce) -> None:
        """End the pass."""
        all_reduce(self._count)
        all_reduce(self.matrix)
        self.matrix /= train_points(self._count)
        self.matrix.copy_(self.matrix.triu() + self.matrix.triu(1).T)
        self._reduced = True

    def snapshot(self) -> Snapshot:
        """The matrix."""
        return {name: {"matrix": self.matrix} if name == self.blocks[0] else {} for name in self.blocks}

    def restore(self, snapshot: Snapshot) -> None:
        """Take a matrix."""
        self.matrix.copy_(snapshot[self.blocks[0]]["matrix"])
        self._reduced = True

    def finish(self, damping: Damping) -> None:
        """Fix the damping and factorise; again for another damping."""
        if not self._reduced:
            raise InfluenceError("the Gauss-Newton matrix has not been reduced")
        self.damping = damping.resolve(float(self.matrix.diagonal().mean()))
        self._cholesky = torch.linalg.cholesky(self._damped())

    def solve(self, gradients: Gradients) -> Gradients:
        """Damped inverse times k gradients, in their dtype."""
        solved = torch.cholesky_solve(self.joint.join(gradients).T, self._factor())  # [p, k]
        return self.joint.split_like(solved.T, gradients)

    def own(self, factors: Factors, *, step: bool = False) -> Own:
        """The own terms of B points, by triangular solves."""
        return Own.join([self._own(full, step=step) for full in self.joint.by_runs(factors)])

    def against(self, gradients: Gradients, *, own: bool = False, step: bool = False) -> Preconditioned:
        """Solve the gradients of k queries and hold them."""
        return Solved(self, gradients, own=own, step=step)

    def diagnostics(self) -> Mapping[str, Diagnostics]:
        """Of the blocks together; the first time costs an eigendecomposition."""
        probe = self.joint.probe().to(self.matrix).T  # [p, 1]
        back = self._damped() @ torch.cholesky_solve(probe, self._factor())
        damped = self.eigenvalues + self.damping
        return {
            self.joint.name: Diagnostics(
                residual=float((back - probe).norm() / probe.norm()),
                effective_dimension=float((self.eigenvalues / damped).sum()),
                condition=float(damped[-1] / damped[0]),
                damping=self.damping,
            )
        }

    def _add_outputs(self, factors: Sequence[Factor]) -> None:
        """Blocks of a single position: one output of one block at a time, against all that come later."""
        g = torch.cat([factor.g[:, :, 0] for factor in factors], 2).transpose(0, 1)  # [b, R, outputs of all blocks]
        s = g.mT @ g  # [b, outputs, outputs]
        output, row = 0, 0
        for index, factor in enumerate(factors):
            a, (o, i) = factor.a[:, 0], (factor.g.shape[3], factor.a.shape[2])
            widths = [later.g.shape[3] for later in factors[index:]]
            for c in range(o):
                later = s[:, output + c, output + c :].split([widths[0] - c, *widths[1:]], 1)
                spread = [(x[:, :, None] * f.a).flatten(1) for x, f in zip(later, factors[index:])]
                self.matrix[row : row + i, row:] += a.T @ torch.cat(spread, 1)  # [i, b] @ [b, columns from row on]
                row += i
            output += o

    def _add_rows(self, factors: Sequence[Factor]) -> None:
        """Any blocks: the gradients themselves."""
        full = self.joint.materialise(dict(zip(self.joint.shapes, factors))).flatten(0, 1)  # [R b, p]
        self._sum.add_moment(full, full.new_ones(len(full)))

    def _own(self, full: Tensor, *, step: bool) -> Own:
        lower = self._factor()
        white = torch.linalg.solve_triangular(lower, full.T, upper=False)  # [p, b]
        moved = torch.linalg.solve_triangular(lower.T, white, upper=True) if step else None
        return Own(white.square().sum(0), None if moved is None else moved.square().sum(0))

    def _damped(self) -> Tensor:
        return self.matrix + self.damping * torch.eye(len(self.matrix), dtype=torch.float64, device=self.matrix.device)

    def _factor(self) -> Tensor:
        if self.damping <= 0:
            raise InfluenceError("the Gauss-Newton matrix has no damping yet: call finish() after its pass")
        return self._cholesky
