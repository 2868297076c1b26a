"""Algebra in a Kronecker eigenbasis: H = (Qs x Qa) diag(Lambda + damping) (Qs x Qa)'.

    g' H^-1 g = sum_kl (Qs' G Qa)^2_kl / (Lambda_kl + damping)

Gradients of a single position are never formed: their rotated squares have rank one. Those of longer sequences are
formed once, each side rotated before or after, whichever multiplies less.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from influence.curvature.base import Own, Scored
from influence.curvature.cut import Cut
from influence.factored import DENSE_ELEMENTS, Factor, Factors, Gradients, dots, materialise, pieces, rotate
from influence.matmul import product, products
from influence.sparse import TableFactor, with_values


@dataclass(frozen=True)
class Eigenbasis:
    """The damped curvature of one block, diagonal in its basis; all in one precision.

    Attributes:
        inputs: Qa, eigenvectors in columns, [i, i]; None is the identity.
        outputs: Qs, eigenvectors in columns, [o, o].
        damped: Lambda + damping, [o, i].
        weights: its reciprocal and the square of that, [2, o, i].
        cut: for own terms of single positions, if they are to be had from fewer eigenvectors.
    """

    inputs: Tensor | None
    outputs: Tensor
    damped: Tensor
    weights: Tensor
    cut: Cut | None = None

    @classmethod
    def of(
        cls, inputs: Tensor | None, outputs: Tensor, eigenvalues: Tensor, damping: float, share: float | None
    ) -> "Eigenbasis":
        """In float64.

        Args:
            inputs: Qa.
            outputs: Qs.
            eigenvalues: Lambda, [o, i].
            damping: positive.
            share: of Lambda's trace, at which to cut; None: not at all.
        """
        damped = eigenvalues + damping
        weights = torch.stack([damped.reciprocal(), damped.reciprocal().square()])
        cut = None if share is None or inputs is None else Cut.at(share, inputs, outputs, eigenvalues, weights)
        return cls(inputs, outputs, damped, weights, cut)

    def like(self, x: Tensor) -> "Eigenbasis":
        """The same in the precision of a tensor."""
        return self if x.dtype == self.damped.dtype else self._single

    @cached_property
    def _single(self) -> "Eigenbasis":
        return Eigenbasis(
            None if self.inputs is None else self.inputs.float(),
            self.outputs.float(),
            self.damped.float(),
            self.weights.float(),
            None if self.cut is None else self.cut.single(),
        )

    def solve(self, gradients: Tensor) -> Tensor:
        """Damped inverse times gradients, [k, o, i], or sparse of a table."""
        if gradients.is_sparse:
            turned = self.turned_rows(gradients)
            return with_values(turned, product(turned.values(), self.outputs.T))
        back = products(self.outputs, self.turn(gradients).div_(self.damped))
        return back if self.inputs is None else product(back, self.inputs.T)

    def turn(self, gradients: Tensor) -> Tensor:
        """Qs' V Qa, [k, o, i]."""
        turned = products(self.outputs.T, gradients)
        return turned if self.inputs is None else product(turned, self.inputs)

    def turned_rows(self, gradients: Tensor) -> Tensor:
        """Damped inverse times sparse gradients, but for the way back."""
        turned = product(gradients.values(), self.outputs)  # [N, d]
        return with_values(gradients, turned / self.damped.T[gradients.indices()[1]])

    def rotate(self, factor: Factor) -> Factor:
        """The factors of Qs' G Qa."""
        return rotate(factor, self.inputs, self.outputs)

    def rotate_rows(self, factor: TableFactor) -> TableFactor:
        """The same of a table."""
        return factor.at(product(factor.g, self.outputs))

    def materialise(self, factor: Factor) -> Tensor:
        """Qs' G Qa of a few points, [..., b, o, i]."""
        positions, (o, i) = factor.a.shape[1], self.damped.shape
        early_in, early_out = positions <= o, positions <= i
        full = materialise(rotate(factor, self.inputs if early_in else None, self.outputs if early_out else None))
        if self.inputs is not None and not early_in:
            full = product(full, self.inputs)
        return full if early_out else products(self.outputs.T, full)

    def own(self, factor: Factor, *, step: bool) -> Own:
        """The own terms of B points in this block."""
        if isinstance(factor, TableFactor):
            return _own_of_rows(self.rotate_rows(factor), self.weights, step=step)
        if factor.a.shape[1] > 1:
            return Own.join([self.own_of_full(self.materialise(factor[piece]), step=step) for piece in pieces(factor)])
        if self.cut is not None:
            return _own(*self.cut.energies(factor), self.cut.weights, step=step)
        return self.own_of_rotated(self.rotate(factor), step=step)

    def own_of_rotated(self, rotated: Factor, *, step: bool) -> Own:
        """The same from rotated factors of a single position."""
        return _own(rotated.a[:, 0].square(), rotated.g[:, 0].square(), self.weights, step=step)

    def own_of_full(self, rotated: Tensor, *, step: bool) -> Own:
        """The same from rotated gradients [b, o, i]."""
        energies, weights = rotated.flatten(1).square(), self.weights.flatten(1)  # [b, o i], [2, o i]
        return Own((energies @ weights[0]).double(), (energies @ weights[1]).double() if step else None)


class RotatedQueries:
    """Solved queries held in the eigenbasis, so that one rotation of a train point serves both kinds of scores.

    Args:
        bases: by block.
        gradients: of k queries.
        step: whether own terms hold the squared step.
    """

    def __init__(self, bases: Mapping[str, Eigenbasis], gradients: Gradients, *, step: bool) -> None:
        self._bases, self._step = bases, step
        self.solved: Gradients = {name: _turned(bases[name].like(full), full) for name, full in gradients.items()}

    def score(self, factors: Factors) -> Scored:
        """Score B points by the factors of their losses."""
        return Scored.sum([self._score(name, factor) for name, factor in factors.items()])

    def _score(self, name: str, factor: Factor) -> Scored:
        basis, queries = self._bases[name].like(factor.g), self.solved[name]
        if isinstance(factor, TableFactor):
            return Scored(dots(basis.rotate_rows(factor), queries).double(), basis.own(factor, step=self._step))
        if factor.a.shape[1] == 1:
            rotated = basis.rotate(factor)
            return Scored(dots(rotated, queries).double(), basis.own_of_rotated(rotated, step=self._step))
        flat, parts = queries.flatten(1).T, []  # [o i, k]
        for piece in pieces(factor):
            full = basis.materialise(factor[piece])  # [b, o, i]
            parts.append(Scored(product(full.flatten(1), flat).double(), basis.own_of_full(full, step=self._step)))
        return Scored.join(parts)


def _turned(basis: Eigenbasis, gradients: Tensor) -> Tensor:
    """Solved but for the way back, some queries at a time, [k, o, i]."""
    if gradients.is_sparse:
        return basis.turned_rows(gradients)
    turned = torch.empty_like(gradients)
    some = max(1, DENSE_ELEMENTS // basis.damped.numel())
    for start in range(0, len(gradients), some):
        piece = slice(start, start + some)
        torch.div(basis.turn(gradients[piece]), basis.damped, out=turned[piece])
    return turned


def _own(a: Tensor, g: Tensor, weights: Tensor, *, step: bool) -> Own:
    """Own terms from squared rotated factors a [B, i] and g [B, o], and weights [2, o, i]."""
    found = [(product(g, weight) * a).sum(1).double() for weight in weights[: 1 + step]]
    return Own(found[0], found[1] if step else None)


def _own_of_rows(rotated: TableFactor, weights: Tensor, *, step: bool) -> Own:
    """The same of a table, with weights [2, d, V]."""
    point, row, value = rotated.touched()
    energies = value.square()
    found = weights.new_zeros(2, len(rotated))
    for total, weight in zip(found, weights[: 1 + step]):
        total.index_add_(0, point, (energies * weight.T[row]).sum(1))
    return Own(found[0].double(), found[1].double() if step else None)
