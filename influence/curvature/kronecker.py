"""EK-FAC: the Gauss-Newton matrix of a linear block, diagonal in a Kronecker eigenbasis.

A point has one gradient sum_t s_yt a_t' for each label y, s_y = sqrt(p_y) B' (e_y - p): `gradients.label_factors`.
Two passes over the data:

    A = mean_i mean_t a_t a_t' = Qa La Qa'        S = mean_i sum_y sum_t s_yt s_yt' = Qs Ls Qs'
    Lambda = mean_i sum_y (Qs' (sum_t s_yt a_t') Qa)^2, elementwise, [o, i]
    H^-1 V = Qs ((Qs' V Qa) / (Lambda + damping)) Qa'

K-FAC would take Ls La' for Lambda; Lambda is the best diagonal in this basis (George et al. 2018, arXiv 1806.03884;
Grosse et al. 2023, arXiv 2308.03296). The expectation over labels is exact, so there is no seed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from influence.blocks import Block
from influence.curvature.base import AllReduce, Damping, Diagnostics, train_points
from influence.errors import InfluenceError
from influence.factored import Factor, Factors, materialise, rotate
from influence.sharding import WHOLE, Share


@dataclass
class KroneckerBlock:
    """The state of one block, float64; sums until their pass is reduced, means after.

    Attributes:
        input_covariance: A, [i, i].
        output_covariance: S, [o, o].
        input_basis: Qa, eigenvectors in columns, [i, i].
        output_basis: Qs, eigenvectors in columns, [o, o].
        eigenvalues: Lambda, [o, i].
        damping: what is added to them; 0 until it is fixed.
    """

    input_covariance: Tensor
    output_covariance: Tensor
    input_basis: Tensor
    output_basis: Tensor
    eigenvalues: Tensor
    damping: float = 0.0


class EKFAC:
    """EK-FAC with the exact expectation over labels.

    Args:
        blocks: the linear blocks.
        share: this rank's share; each block's eigendecomposition is one rank's.
    """

    passes = 2

    def __init__(self, blocks: Sequence[Block], share: Share = WHOLE) -> None:
        self.state = {block.name: _empty(block) for block in blocks}
        self._share = share
        self._count = torch.zeros((), dtype=torch.float64)
        self._reduced = 0

    def accumulate(self, batch: Factors, weights: Tensor) -> None:
        """Add a batch to the covariances (first pass) or to the eigenvalues (second pass).

        Args:
            batch: `label_factors` of the batch.
            weights: [B], 1 for points in the train set and 0 for others.
        """
        if self._reduced == self.passes:
            raise InfluenceError("both passes of EK-FAC are over")
        add = self._add_covariances if self._reduced == 0 else self._add_eigenvalues
        add(batch, weights)
        self._count += weights.sum(dtype=torch.float64)

    def reduce(self, all_reduce: AllReduce) -> None:
        """End a pass: covariances to eigenbases after the first, eigenvalues after the second.

        Args:
            all_reduce: sums a float64 tensor over ranks, in place.
        """
        all_reduce(self._count)
        points = train_points(self._count)
        for block in self.state.values():
            sums = (block.input_covariance, block.output_covariance) if self._reduced == 0 else (block.eigenvalues,)
            for total in sums:
                all_reduce(total)
                total /= points
        if self._reduced == 0:
            self._decompose(all_reduce)
        self._count.zero_()
        self._reduced += 1

    def finish(self, damping: Damping) -> None:
        """Fix the damping of every block."""
        if self._reduced < self.passes:
            raise InfluenceError(f"EK-FAC has made {self._reduced} of its {self.passes} passes")
        for block in self.state.values():
            block.damping = damping.resolve(float(block.eigenvalues.mean()))

    def solve(self, name: str, gradients: Tensor) -> Tensor:
        """(H + damping)^-1 V, [k, o, i] -> [k, o, i]."""
        block = self._finished(name)
        qa, qs = block.input_basis.to(gradients.dtype), block.output_basis.to(gradients.dtype)
        damped = (block.eigenvalues + block.damping).to(gradients.dtype)
        return qs @ ((qs.T @ gradients @ qa) / damped) @ qa.T

    def whiten(self, name: str, factor: Factor) -> Tensor:
        """(Lambda + damping)^-1/2 Qs' G Qa for the gradients G of B points, flattened to [B, o * i]."""
        block, dtype = self._finished(name), factor.g.dtype
        rotated = rotate(factor, block.input_basis.to(dtype), block.output_basis.to(dtype))
        scale = (block.eigenvalues + block.damping).rsqrt().to(dtype)
        return materialise(rotated).mul_(scale).flatten(1)

    def diagnostics(self) -> Mapping[str, Diagnostics]:
        """By block; the residual is that of the block's own H, rebuilt from its parts."""
        return {name: self._diagnose(name) for name in self.state}

    def _add_covariances(self, batch: Factors, weights: Tensor) -> None:
        for name, factor in batch.items():
            block, w = self.state[name], weights.to(factor.g.dtype)[:, None, None]  # [B, 1, 1]
            block.input_covariance += _second_moment(factor.a, w / factor.a.shape[1])
            block.output_covariance += _second_moment(factor.g, w)

    def _add_eigenvalues(self, batch: Factors, weights: Tensor) -> None:
        for name, factor in batch.items():
            block, w = self.state[name], weights.to(factor.g.dtype)  # [B]
            rotated = rotate(factor, block.input_basis.to(w.dtype), block.output_basis.to(w.dtype))
            if factor.a.shape[1] == 1:  # the squares of a rank-one gradient have rank one
                a, g = rotated.a[:, 0].square(), rotated.g[:, :, 0].square().sum(0)  # [B, i], [B, o]
                block.eigenvalues += (g * w[:, None]).T @ a
            else:
                for g in rotated.g:  # [B, T, o] of one label
                    block.eigenvalues += torch.einsum("b,boi->oi", w, materialise(Factor(rotated.a, g)).square())

    def _decompose(self, all_reduce: AllReduce) -> None:
        for index, block in enumerate(self.state.values()):
            if self._share.owns(index):  # copied in place: a product rounds differently with another memory layout
                block.input_basis.copy_(torch.linalg.eigh(block.input_covariance).eigenvectors)
                block.output_basis.copy_(torch.linalg.eigh(block.output_covariance).eigenvectors)
            all_reduce(block.input_basis)  # zero on the ranks that do not own the block
            all_reduce(block.output_basis)

    def _finished(self, name: str) -> KroneckerBlock:
        if self.state[name].damping <= 0:
            raise InfluenceError("EK-FAC has no damping yet: call finish() after its passes")
        return self.state[name]

    def _diagnose(self, name: str) -> Diagnostics:
        block = self._finished(name)
        damped = block.eigenvalues + block.damping
        probe = torch.randn(damped.shape, dtype=damped.dtype, generator=torch.Generator().manual_seed(0))
        rotated = block.output_basis.T @ self.solve(name, probe[None])[0] @ block.input_basis
        back = block.output_basis @ (damped * rotated) @ block.input_basis.T
        return Diagnostics(
            residual=float((back - probe).norm() / probe.norm()),
            effective_dimension=float((block.eigenvalues / damped).sum()),
            condition=float(damped.max() / damped.min()),
            damping=block.damping,
        )


def _empty(block: Block) -> KroneckerBlock:
    o, i = block.weight_shape
    shapes = ((i, i), (o, o), (i, i), (o, o), (o, i))
    covariance_a, covariance_s, basis_a, basis_s, eigenvalues = (torch.zeros(x, dtype=torch.float64) for x in shapes)
    return KroneckerBlock(covariance_a, covariance_s, basis_a, basis_s, eigenvalues)


def _second_moment(x: Tensor, weights: Tensor) -> Tensor:
    return (x * weights).flatten(0, -2).T @ x.flatten(0, -2)  # [..., B, T, d] -> [d, d]
