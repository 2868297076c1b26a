"""The exact damped Gauss-Newton matrix of a softmax head.

For logits z = W h, h the head's input with 1 appended where it has a bias, a point's Gauss-Newton matrix is
(diag(p) - p p') (x) h h' of order C i, in the row-major order of W [C, i]. It is the Hessian of the cross-entropy
itself, since the logits are linear in W. Float64 throughout.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from influence.blocks import Block
from influence.curvature.base import AllReduce, Damping, Diagnostics, train_points
from influence.errors import InfluenceError
from influence.factored import Factor, materialise
from influence.gradients import HeadOutputs

LARGEST = 4096  # parameters: 128 MB, and some 10 s for one Cholesky on one core


class HeadGaussNewton:
    """Exact damped Gauss-Newton on the head block.

    Args:
        block: the head.

    Raises:
        InfluenceError: the head has more than 4,096 parameters.
    """

    passes = 1

    def __init__(self, block: Block) -> None:
        if block.parameters > LARGEST:
            raise InfluenceError(
                f"head {block.name!r} has {block.parameters} parameters, the exact solver takes up to {LARGEST}; "
                "use EK-FAC on it, or a narrower last layer"
            )
        self.name = block.name
        self.matrix = torch.zeros(block.parameters, block.parameters, dtype=torch.float64)  # sums, then means
        self.damping = 0.0
        self._shape = block.weight_shape
        self._count = torch.zeros((), dtype=torch.float64)
        self._reduced = False
        self._cholesky = torch.empty(0, dtype=torch.float64)

    def accumulate(self, batch: HeadOutputs, weights: Tensor) -> None:
        """Add a batch.

        Args:
            batch: `head_outputs` of the batch.
            weights: [B], 1 for points in the train set and 0 for others.
        """
        if self._reduced:
            raise InfluenceError("the only pass of the head's Gauss-Newton is over")
        classes, inputs = self._shape
        w = weights.double()[:, None]  # [B, 1]
        h, p = batch.inputs.double(), batch.probabilities.double()  # [B, i], [B, C]
        ph = (p[:, :, None] * h[:, None, :]).flatten(1)  # [B, C i]
        self.matrix -= (ph * w).T @ ph
        blocks = self.matrix.view(classes, inputs, classes, inputs)
        for c in range(classes):
            blocks[c, :, c] += (ph[:, c * inputs : (c + 1) * inputs] * w).T @ h
        self._count += w.sum()

    def reduce(self, all_reduce: AllReduce) -> None:
        """End the pass.

        Args:
            all_reduce: sums a float64 tensor over ranks, in place.
        """
        all_reduce(self._count)
        all_reduce(self.matrix)
        self.matrix /= train_points(self._count)
        self._reduced = True

    def finish(self, damping: Damping) -> None:
        """Fix the damping and factorise."""
        if not self._reduced:
            raise InfluenceError("the head's Gauss-Newton has not been reduced")
        self.damping = damping.resolve(float(self.matrix.diagonal().mean()))
        self._cholesky = torch.linalg.cholesky(self._damped())

    def solve(self, name: str, gradients: Tensor) -> Tensor:
        """(H + damping)^-1 V, [k, o, i] -> [k, o, i]."""
        flat = gradients.flatten(1).double()  # [k, o i]
        return torch.cholesky_solve(flat.T, self._factor(name)).T.reshape(gradients.shape).to(gradients.dtype)

    def whiten(self, name: str, factor: Factor) -> Tensor:
        """L^-1 g for the gradients g of B points, with L L' = H + damping; float64, [B, o * i]."""
        gradients = materialise(factor).flatten(1).double()
        whitened: Tensor = torch.linalg.solve_triangular(self._factor(name), gradients.T, upper=False)
        return whitened.T

    def diagnostics(self) -> Mapping[str, Diagnostics]:
        """Of the one block; costs an eigendecomposition."""
        eigenvalues = torch.linalg.eigvalsh(self.matrix).clamp(min=0)  # rounding only: the matrix is semidefinite
        damped = eigenvalues + self.damping
        probe = torch.randn(1, *self._shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        back = (self._damped() @ self.solve(self.name, probe).flatten()).view_as(probe)
        return {
            self.name: Diagnostics(
                residual=float((back - probe).norm() / probe.norm()),
                effective_dimension=float((eigenvalues / damped).sum()),
                condition=float(damped.max() / damped.min()),
                damping=self.damping,
            )
        }

    def _damped(self) -> Tensor:
        return self.matrix + self.damping * torch.eye(len(self.matrix), dtype=self.matrix.dtype)

    def _factor(self, name: str) -> Tensor:
        if name != self.name:
            raise InfluenceError(f"this curvature knows the block {self.name!r}, not {name!r}")
        if not len(self._cholesky):
            raise InfluenceError("the head's Gauss-Newton has no damping yet: call finish() after its pass")
        return self._cholesky
