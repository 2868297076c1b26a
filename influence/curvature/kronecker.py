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

from influence.blocks import Block, shapes_of
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
from influence.curvature.eigenbasis import Eigenbasis, RotatedQueries
from influence.curvature.moments import ProductSum
from influence.errors import InfluenceError
from influence.factored import Factor, Factors, Gradients, pieces
from influence.sharding import WHOLE, Share
from influence.sparse import TableFactor


@dataclass
class Side:
    """Inputs or outputs of a block.

    Attributes:
        covariance: A or S on and above the diagonal, a sum over points and then their mean, [d, d]; nothing of it is
            kept once the basis is known.
        basis: its eigenvectors in columns, [d, d], float64.
        spectrum: its eigenvalues, [d], float64.
    """

    covariance: ProductSum
    basis: Tensor
    spectrum: Tensor


@dataclass
class KroneckerBlock:
    """The state of one block.

    Attributes:
        inputs: None for a free block.
        outputs: of every block.
        eigenvalues: Lambda, a sum over points and then their mean, [o, i].
        fitted: the undamped basis, during the second pass.
    """

    inputs: Side | None
    outputs: Side
    eigenvalues: ProductSum
    fitted: Eigenbasis | None = None

    def tensors(self) -> dict[str, Tensor]:
        """What is kept of a fit."""
        sides = {"outputs": self.outputs} if self.inputs is None else {"inputs": self.inputs, "outputs": self.outputs}
        found = {"eigenvalues": self.eigenvalues.value}
        for name, side in sides.items():
            found |= {f"{name}.basis": side.basis, f"{name}.spectrum": side.spectrum}
        return found


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
        self.shapes = shapes_of(blocks)
        self.state = {block.name: _empty(block) for block in blocks}
        self._share = share
        self._cut = cut
        self._count = torch.zeros((), dtype=torch.float64)
        self._reduced = 0
        self._bases: dict[str, Eigenbasis] = {}
        self._damping: dict[str, float] = {}

    def accumulate(self, batch: Factors, weights: Tensor) -> None:
        """Add the Fisher roots of a batch to the current pass."""
        if self._reduced == self.passes:
            raise InfluenceError(f"{type(self).__name__} makes {self.passes} passes, and they are over")
        for name, factor in batch.items():
            self._add(self.state[name], factor, weights)
        self._count += weights.sum(dtype=torch.float64).to(self._count)

    def reduce(self, all_reduce: AllReduce) -> None:
        """End a pass: covariances to bases after the first."""
        self._mean(all_reduce, (side.covariance for side in self._sides()))
        self._decompose(all_reduce)
        for block in self.state.values():
            total = block.eigenvalues.value
            values = 1 / total.shape[1] if block.inputs is None else block.inputs.spectrum
            total.copy_(block.outputs.spectrum[:, None] * values)

    def snapshot(self) -> Snapshot:
        """Bases and eigenvalues."""
        self.refuse_unfitted()
        return {name: block.tensors() for name, block in self.state.items()}

    def restore(self, snapshot: Snapshot) -> None:
        """Take bases and eigenvalues."""
        for name, block in self.state.items():
            for key, tensor in block.tensors().items():
                tensor.copy_(snapshot[name][key])
        for side in self._sides():
            side.covariance = ProductSum(0, 0)
        self._reduced = self.passes

    def finish(self, damping: Damping) -> None:
        """Fix the damping of every block; again for another one."""
        self.refuse_unfitted()
        self._bases, self._damping = {}, {}
        for name, block in self.state.items():
            inputs = None if block.inputs is None else block.inputs.basis
            values = block.eigenvalues.value
            self._damping[name] = damping.resolve(float(values.mean()))
            self._bases[name] = Eigenbasis.of(inputs, block.outputs.basis, values, self._damping[name], self._cut)

    def refuse_unfitted(self) -> None:
        """Raise InfluenceError while the bases or eigenvalues are not known."""
        if self._reduced < self.passes:
            raise InfluenceError(f"{type(self).__name__} has made {self._reduced} of its {self.passes} passes")

    def solve(self, gradients: Gradients) -> Gradients:
        """Damped inverse times k gradients, in their dtype."""
        return {name: self._basis(name).like(full).solve(full) for name, full in gradients.items()}

    def own(self, factors: Factors, *, step: bool = False) -> Own:
        """The own terms of B points."""
        return Own.sum([self._basis(name).like(factor.g).own(factor, step=step) for name, factor in factors.items()])

    def against(self, gradients: Gradients, *, own: bool = False, step: bool = False) -> Preconditioned:
        """Solve the gradients of k queries and hold them; in the eigenbasis, if that serves own terms, too."""
        if own and self._cut is None:
            return RotatedQueries({name: self._basis(name) for name in gradients}, gradients, step=step)
        return Solved(self, gradients, own=own, step=step)

    def diagnostics(self) -> Mapping[str, Diagnostics]:
        """By block."""
        return {name: self._diagnose(name) for name in self.state}

    def _add(self, block: KroneckerBlock, factor: Factor, weights: Tensor) -> None:
        w = weights.to(factor.g)
        of_outputs = w[:, None].expand(factor.g.shape[:-1])  # [R, B, T]
        block.outputs.covariance.add_moment(factor.g.flatten(0, -2), of_outputs.flatten())
        if block.inputs is not None:
            block.inputs.covariance.add_moment(factor.a.flatten(0, 1), _of_positions(factor, w).flatten())

    def _sides(self) -> Iterator[Side]:
        for block in self.state.values():
            yield from (block.outputs,) if block.inputs is None else (block.inputs, block.outputs)

    def _mean(self, all_reduce: AllReduce, sums: Iterable[ProductSum]) -> None:
        all_reduce(self._count)
        points = train_points(self._count)
        for one in sums:
            value = one.settle()
            all_reduce(value)
            value /= points
        self._count.zero_()
        self._reduced += 1

    def _decompose(self, all_reduce: AllReduce) -> None:
        owners = self._share.owners([float(len(side.spectrum)) ** 3 for side in self._sides()])
        for owner, side in zip(owners, self._sides()):
            if owner == self._share.rank:  # copied in place: a product rounds differently with another memory layout
                found = torch.linalg.eigh(side.covariance.value, UPLO="U")
                side.basis.copy_(found.eigenvectors)
                side.spectrum.copy_(found.eigenvalues.clamp(min=0))  # rounding only: a covariance is semidefinite
                del found
            side.covariance = ProductSum(0, 0)
            all_reduce(side.basis)  # zero on the ranks that do not own it
            all_reduce(side.spectrum)

    def _diagnose(self, name: str) -> Diagnostics:
        """The residual is that of the block's own H, rebuilt from its parts."""
        basis, values = self._basis(name), self.state[name].eigenvalues.value
        probe = torch.randn(values.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))[None]
        probe = probe.to(values.device)
        back = basis.outputs @ (basis.damped * basis.turn(basis.solve(probe)))
        back = back if basis.inputs is None else back @ basis.inputs.T
        return Diagnostics(
            residual=float((back - probe).norm() / probe.norm()),
            effective_dimension=float((values / basis.damped).sum()),
            condition=float(basis.damped.max() / basis.damped.min()),
            damping=self._damping[name],
        )

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
            for block in self.state.values():
                block.fitted = None
            return
        self._mean(all_reduce, (side.covariance for side in self._sides()))
        self._decompose(all_reduce)
        for block in self.state.values():
            inputs = None if block.inputs is None else block.inputs.basis
            block.fitted = Eigenbasis.of(inputs, block.outputs.basis, block.eigenvalues.value, 1.0, None)

    def _add(self, block: KroneckerBlock, factor: Factor, weights: Tensor) -> None:
        if block.fitted is None:
            super()._add(block, factor, weights)
        else:
            _add_squares(block.eigenvalues, block.fitted.like(factor.g), factor, weights.to(factor.g))


def _add_squares(total: ProductSum, basis: Eigenbasis, factor: Factor, weights: Tensor) -> None:
    """Add sum_b w_b sum_r (Qs' G_rb Qa)^2, [o, i]."""
    if isinstance(factor, TableFactor):
        point, rows, values = basis.rotate_rows(factor).touched()  # [R, N, d]
        total.add_columns(rows, (values.square().sum(0) * weights[point, None]).T)
        return
    if factor.a.shape[1] == 1:  # the squares of a rank-one gradient have rank one
        rotated = basis.rotate(factor)
        total.add(rotated.g[:, :, 0].square().sum(0) * weights[:, None], rotated.a[:, 0].square())
        return
    for r in range(len(factor.g)):
        one = Factor(factor.a, factor.g[r])
        for piece in pieces(one):
            total.add_rows(weights[piece], basis.materialise(one[piece]).square_())  # [b, o, i]


def _of_positions(factor: Factor, weights: Tensor) -> Tensor:
    """Each point's weight spread evenly over the positions at which a root has a gradient, [B, T]."""
    if factor.a.shape[1] == 1:
        return weights[:, None]
    reached = (factor.g != 0).any(-1).any(0).to(factor.a.dtype)
    return reached * (weights / reached.sum(1).clamp(min=1))[:, None]


def _empty(block: Block) -> KroneckerBlock:
    o, i = block.weight_shape
    inputs = None if block.layout.free else _side(i, block.device)
    return KroneckerBlock(inputs, _side(o, block.device), ProductSum(o, i, block.device))


def _side(size: int, device: torch.device) -> Side:
    covariance = ProductSum(size, size, device)
    return Side(covariance, torch.zeros_like(covariance.value), covariance.value.new_zeros(size))
