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

from influence.curvature.base import Diagnostics, Own, Scored
from influence.curvature.cut import Cut
from influence.factored import Factor, Factors, Gradients, dots, materialise, pieces, rotate


@dataclass(frozen=True)
class Eigenbasis:
    """The damped curvature of one block, diagonal in its basis.

    Attributes:
        inputs: Qa, eigenvectors in columns, [i, i], float64; None is the identity.
        outputs: Qs, eigenvectors in columns, [o, o], float64.
        eigenvalues: Lambda, [o, i], float64.
        damping: positive.
        share: what share of Lambda's trace the eigenvectors hold that enter own terms one by one; None: all do.
    """

    inputs: Tensor | None
    outputs: Tensor
    eigenvalues: Tensor
    damping: float
    share: float | None = None

    @cached_property
    def damped(self) -> Tensor:
        """Lambda + damping, [o, i]."""
        return self.eigenvalues + self.damping

    @cached_property
    def weights(self) -> Tensor:
        """Its reciprocal and the square of that, [2, o, i]."""
        inverse = self.damped.reciprocal()
        return torch.stack([inverse, inverse.square()])

    @cached_property
    def cut(self) -> Cut | None:
        """The basis cut at a share of the trace, where there is something to cut."""
        if self.share is None or self.inputs is None:
            return None
        return Cut.at(self.share, self.inputs, self.outputs, self.eigenvalues, self.weights)

    def solve(self, gradients: Tensor) -> Tensor:
        """Damped inverse times gradients, [k, o, i], in their dtype."""
        rotated = self.rotated(gradients) / self.damped.to(gradients.dtype)
        back = self.outputs.to(gradients.dtype) @ rotated
        return back if self.inputs is None else back @ self.inputs.T.to(gradients.dtype)

    def rotated(self, gradients: Tensor) -> Tensor:
        """Qs' V Qa, [k, o, i]."""
        turned = self.outputs.T.to(gradients.dtype) @ gradients
        return turned if self.inputs is None else turned @ self.inputs.to(gradients.dtype)

    def rotate(self, factor: Factor) -> Factor:
        """The factors of Qs' G Qa."""
        return rotate(factor, self._inputs(factor), self.outputs.to(factor.g.dtype))

    def materialise(self, factor: Factor) -> Tensor:
        """Qs' G Qa of a few points, [..., b, o, i]."""
        positions, (o, i) = factor.a.shape[1], self.eigenvalues.shape
        qa, qs = self._inputs(factor), self.outputs.to(factor.g.dtype)
        early_in, early_out = positions <= o, positions <= i
        full = materialise(rotate(factor, qa if early_in else None, qs if early_out else None))  # [..., b, o, i]
        if qa is not None and not early_in:
            full = full @ qa
        return full if early_out else qs.T @ full

    def own(self, factor: Factor, *, step: bool) -> Own:
        """The own terms of B points in this block."""
        if factor.a.shape[1] > 1:
            return Own.join([self.own_of_full(self.materialise(factor[piece]), step=step) for piece in pieces(factor)])
        if self.cut is not None:
            a, g = self.cut.energies(factor)
            return _own(a, g, self.cut.weights, step=step)
        return self.own_of_rotated(self.rotate(factor), step=step)

    def own_of_rotated(self, rotated: Factor, *, step: bool) -> Own:
        """The same from rotated factors of a single position."""
        return _own(rotated.a[:, 0].square(), rotated.g[:, 0].square(), self.weights, step=step)

    def own_of_full(self, rotated: Tensor, *, step: bool) -> Own:
        """The same from rotated gradients [b, o, i]."""
        energies, weights = rotated.flatten(1).square(), self.weights.flatten(1).to(rotated.dtype)  # [2, o i]
        return Own((energies @ weights[0]).double(), (energies @ weights[1]).double() if step else None)

    def diagnose(self) -> Diagnostics:
        """The residual is that of the block's own H, rebuilt from its parts."""
        probe = torch.randn(self.damped.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))[None]
        back = self.outputs @ (self.damped * self.rotated(self.solve(probe)))
        back = back if self.inputs is None else back @ self.inputs.T
        return Diagnostics(
            residual=float((back - probe).norm() / probe.norm()),
            effective_dimension=float((self.eigenvalues / self.damped).sum()),
            condition=float(self.damped.max() / self.damped.min()),
            damping=self.damping,
        )

    def _inputs(self, factor: Factor) -> Tensor | None:
        return None if self.inputs is None else self.inputs.to(factor.a.dtype)


class RotatedQueries:
    """Solved queries held in the eigenbasis, so that one rotation of a train point serves both kinds of scores.

    Args:
        bases: by block.
        gradients: of k queries.
        step: whether own terms hold the squared step.
    """

    def __init__(self, bases: Mapping[str, Eigenbasis], gradients: Gradients, *, step: bool) -> None:
        self._bases, self._step = bases, step
        self._queries = {
            name: bases[name].rotated(full) / bases[name].damped.to(full.dtype) for name, full in gradients.items()
        }

    def score(self, factors: Factors) -> Scored:
        """Score B points by the factors of their losses."""
        blocks = [self._score(name, factor) for name, factor in factors.items()]
        return Scored.sum(blocks)

    def _score(self, name: str, factor: Factor) -> Scored:
        basis, queries = self._bases[name], self._queries[name]
        if factor.a.shape[1] == 1:
            rotated = basis.rotate(factor)
            return Scored(dots(rotated, queries).double(), basis.own_of_rotated(rotated, step=self._step))
        flat, parts = queries.flatten(1).T, []  # [o i, k]
        for piece in pieces(factor):
            full = basis.materialise(factor[piece])  # [b, o, i]
            parts.append(Scored((full.flatten(1) @ flat).double(), basis.own_of_full(full, step=self._step)))
        return Scored.join(parts)


def _own(a: Tensor, g: Tensor, weights: Tensor, *, step: bool) -> Own:
    """Own terms from squared rotated factors a [B, i] and g [B, o], and weights [2, o, i]."""
    found = [((g @ weight.to(g.dtype)) * a).sum(1).double() for weight in weights[: 1 + step]]
    return Own(found[0], found[1] if step else None)
