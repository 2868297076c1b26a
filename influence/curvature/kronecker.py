"""K-FAC and EK-FAC: the Gauss-Newton matrix of a block, diagonal in a Kronecker eigenbasis.

A point has R gradients sum_t s_rt a_t' whose outer products add up to its Gauss-Newton matrix (`fisher`).

    A = mean_i mean_t a_t a_t' = Qa La Qa'        S = mean_i sum_r sum_t s_rt s_rt' = Qs Ls Qs'
    K-FAC:   Lambda = Ls La'
    EK-FAC:  Lambda = mean_i sum_r (Qs' (sum_t s_rt a_t') Qa)^2, elementwise, [o, i], in a second pass
    H^-1 V = Qs ((Qs' V Qa) / (Lambda + damping)) Qa'

EK-FAC's Lambda is the best diagonal in this basis (George et al. 2018, arXiv 1806.03884; Grosse et al. 2023,
arXiv 2308.03296). Positions where no root has a gradient (padding) do not enter A. A free block (`layouts`) has Qa = I
and A = I / i.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from influence.blocks import Block
from influence.curvature.base import AllReduce, Damping, Diagnostics, Own, Preconditioned, Solved, train_points
from influence.curvature.eigenbasis import Eigenbasis, RotatedQueries
from influence.errors import InfluenceError
from influence.factored import Factor, Factors, Gradients, pieces
from influence.sharding import WHOLE, Share


@dataclass
class Side:
    """Inputs or outputs of a block: sums and then means over points, float64.

    Attributes:
        covariance: A or S, [d, d].
        basis: its eigenvectors in columns, [d, d].
        spectrum: its eigenvalues, [d].
    """

    covariance: Tensor
    basis: Tensor
    spectrum: Tensor


@dataclass
class KroneckerBlock:
    """The state of one block.

    Attributes:
        inputs: None for a free block.
        outputs: of every block.
        eigenvalues: Lambda, [o, i], float64.
    """

    inputs: Side | None
    outputs: Side
    eigenvalues: Tensor


class KFAC:
    """K-FAC.

    Args:
        blocks: the blocks.
        share: this rank's share; each block's eigendecomposition is one rank's.
        cut: share of the trace of Lambda at which bases are cut for self-influence (`cut`); None: not at all.
    """

    passes = 1

    def __init__(self, blocks: Sequence[Block], share: Share = WHOLE, cut: float | None = None) -> None:
        if cut is not None and not 0 < cut < 1:
            raise InfluenceError(f"cut = {cut}: give a share of the trace between 0 and 1, or None")
        self.blocks = tuple(block.name for block in blocks)
        self.state = {block.name: _empty(block) for block in blocks}
        self._share = share
        self._cut = cut
        self._count = torch.zeros((), dtype=torch.float64)
        self._reduced = 0
        self._bases: dict[str, Eigenbasis] = {}

    def accumulate(self, batch: Factors, weights: Tensor) -> None:
        """Add the Fisher roots of a batch to the current pass."""
        if self._reduced == self.passes:
            raise InfluenceError(f"{type(self).__name__} makes {self.passes} passes, and they are over")
        for name, factor in batch.items():
            self._add(self.state[name], factor, weights)
        self._count += weights.sum(dtype=torch.float64)

    def reduce(self, all_reduce: AllReduce) -> None:
        """End a pass: covariances to bases after the first."""
        self._mean(all_reduce, (side.covariance for side in self._sides()))
        self._decompose(all_reduce)
        for block in self.state.values():
            values = 1 / block.eigenvalues.shape[1] if block.inputs is None else block.inputs.spectrum
            block.eigenvalues.copy_(block.outputs.spectrum[:, None] * values)

    def finish(self, damping: Damping) -> None:
        """Fix the damping of every block; again for another one."""
        if self._reduced < self.passes:
            raise InfluenceError(f"{type(self).__name__} has made {self._reduced} of its {self.passes} passes")
        self._bases = {
            name: Eigenbasis(
                inputs=None if block.inputs is None else block.inputs.basis,
                outputs=block.outputs.basis,
                eigenvalues=block.eigenvalues,
                damping=damping.resolve(float(block.eigenvalues.mean())),
                share=self._cut,
            )
            for name, block in self.state.items()
        }

    def solve(self, gradients: Gradients) -> Gradients:
        """Damped inverse times k gradients, in their dtype."""
        return {name: self._basis(name).solve(full) for name, full in gradients.items()}

    def own(self, factors: Factors, *, step: bool = False) -> Own:
        """The own terms of B points."""
        return Own.sum([self._basis(name).own(factor, step=step) for name, factor in factors.items()])

    def against(self, gradients: Gradients, *, own: bool = False, step: bool = False) -> Preconditioned:
        """Solve the gradients of k queries and hold them; in the eigenbasis, if that serves own terms, too."""
        if own and self._cut is None:
            return RotatedQueries({name: self._basis(name) for name in gradients}, gradients, step=step)
        return Solved(self, gradients, own=own, step=step)

    def diagnostics(self) -> Mapping[str, Diagnostics]:
        """By block."""
        return {name: self._basis(name).diagnose() for name in self.state}

    def _add(self, block: KroneckerBlock, factor: Factor, weights: Tensor) -> None:
        w = weights.to(factor.g.dtype)
        block.outputs.covariance += _second_moment(factor.g, w[:, None, None])
        if block.inputs is not None:
            block.inputs.covariance += _second_moment(factor.a, _of_positions(factor, w)[:, :, None])

    def _sides(self) -> Iterator[Side]:
        for block in self.state.values():
            yield from (block.outputs,) if block.inputs is None else (block.inputs, block.outputs)

    def _mean(self, all_reduce: AllReduce, sums: Iterable[Tensor]) -> None:
        all_reduce(self._count)
        points = train_points(self._count)
        for one in sums:
            all_reduce(one)
            one /= points
        self._count.zero_()
        self._reduced += 1

    def _decompose(self, all_reduce: AllReduce) -> None:
        for index, side in enumerate(self._sides()):
            if self._share.owns(index):  # copied in place: a product rounds differently with another memory layout
                found = torch.linalg.eigh(side.covariance)
                side.basis.copy_(found.eigenvectors)
                side.spectrum.copy_(found.eigenvalues.clamp(min=0))  # rounding only: a covariance is semidefinite
            all_reduce(side.basis)  # zero on the ranks that do not own it
            all_reduce(side.spectrum)

    def _basis(self, name: str) -> Eigenbasis:
        if not self._bases:
            raise InfluenceError(f"{type(self).__name__} has no damping yet: call finish() after its passes")
        if name not in self._bases:
            raise InfluenceError(f"block {name!r} was not fitted; there are {', '.join(self._bases)}")
        return self._bases[name]


class EKFAC(KFAC):
    """EK-FAC: K-FAC's bases, and in a second pass the best diagonal in them. Arguments as for K-FAC."""

    passes = 2

    def reduce(self, all_reduce: AllReduce) -> None:
        """End a pass: covariances to bases after the first, Lambda after the second."""
        if self._reduced:
            self._mean(all_reduce, (block.eigenvalues for block in self.state.values()))
            return
        self._mean(all_reduce, (side.covariance for side in self._sides()))
        self._decompose(all_reduce)

    def _add(self, block: KroneckerBlock, factor: Factor, weights: Tensor) -> None:
        if self._reduced:
            block.eigenvalues += _squares(_undamped(block), factor, weights.to(factor.g.dtype))
        else:
            super()._add(block, factor, weights)


def _undamped(block: KroneckerBlock) -> Eigenbasis:
    return Eigenbasis(None if block.inputs is None else block.inputs.basis, block.outputs.basis, block.eigenvalues, 0.0)


def _squares(basis: Eigenbasis, factor: Factor, weights: Tensor) -> Tensor:
    """sum_b w_b sum_r (Qs' G_rb Qa)^2, [o, i]."""
    if factor.a.shape[1] == 1:  # the squares of a rank-one gradient have rank one
        rotated = basis.rotate(factor)
        a, g = rotated.a[:, 0].square(), rotated.g[:, :, 0].square().sum(0)  # [B, i], [B, o]
        return (g * weights[:, None]).T @ a
    sums = torch.zeros_like(basis.eigenvalues, dtype=weights.dtype)
    for r in range(len(factor.g)):
        one = Factor(factor.a, factor.g[r])
        for piece in pieces(one):
            full = basis.materialise(one[piece])  # [b, o, i]
            sums += (weights[piece] @ full.flatten(1).square()).view_as(sums)
    return sums


def _of_positions(factor: Factor, weights: Tensor) -> Tensor:
    """Each point's weight spread evenly over the positions at which a root has a gradient, [B, T]."""
    if factor.a.shape[1] == 1:
        return weights[:, None]
    reached = (factor.g != 0).any(-1).any(0).to(weights.dtype)
    return reached * (weights / reached.sum(1).clamp(min=1))[:, None]


def _second_moment(x: Tensor, weights: Tensor) -> Tensor:
    return (x * weights).flatten(0, -2).T @ x.flatten(0, -2)  # [..., B, T, d] -> [d, d]


def _empty(block: Block) -> KroneckerBlock:
    o, i = block.weight_shape
    free = block.layout.free
    return KroneckerBlock(None if free else _side(i), _side(o), torch.zeros(o, i, dtype=torch.float64))


def _side(size: int) -> Side:
    covariance, basis = torch.zeros(2, size, size, dtype=torch.float64)
    return Side(covariance, basis, torch.zeros(size, dtype=torch.float64))
