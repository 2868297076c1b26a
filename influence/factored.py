"""Factors of per-point gradients, and algebra on them, routed by cost.

The gradient of one point's loss in a block is G_b = sum_t g_bt a_bt', a sum over T positions of outer products of the
gradient g at the layer's output and its input a. For T = 1 nothing need be formed; for longer sequences G_b is cheaper
to form once than to contract position by position.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import singledispatch

import torch
from torch import Tensor

from influence.matmul import product, products

DENSE_ELEMENTS = 1 << 22  # of a working tensor: 16 MB stay in the allocator, more is paged in anew every time


@dataclass(frozen=True)
class Factor:
    """Per-point gradients of one block.

    Attributes:
        a: inputs of the layer, 1 appended where it has a bias, [B, T, i].
        g: gradients at the outputs of the layer, [B, T, o]; of several functions, [R, B, T, o].
    """

    a: Tensor
    g: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, points: slice | Tensor) -> "Factor":
        """The same of some points."""
        return Factor(self.a[points], self.g[..., points, :, :])

    @property
    def inputs(self) -> Tensor:
        """What is held beside `g`: `a`, but for tables (`sparse`)."""
        return self.a

    def at(self, g: Tensor) -> "Factor":
        """Other gradients at the outputs of the layer, on the same inputs."""
        return Factor(self.a, g)

    @property
    def shape(self) -> tuple[int, int]:
        """Of the block, (o, i)."""
        return self.g.shape[-1], self.a.shape[-1]

    @property
    def elements(self) -> int:
        """Numbers in the materialised gradient of one point, o * i."""
        return self.g.shape[-1] * self.a.shape[-1]


Factors = Mapping[str, Factor]
Gradients = Mapping[str, Tensor]
"""Block name to k gradients in full, [k, o, i]."""


def materialise(factor: Factor) -> Tensor:
    """The gradients themselves, [B, o, i]; of several functions, [R, B, o, i]."""
    if factor.a.shape[1] == 1:
        return factor.g.mT * factor.a  # [B, o, 1] * [B, 1, i]
    return products(factor.g.mT, factor.a)


def rotate(factor: Factor, inputs: Tensor | None, outputs: Tensor | None) -> Factor:
    """The factors of outputs' G inputs, for bases [i, i] and [o, o] whose columns are the basis vectors; None = I."""
    g = factor.g if outputs is None else product(factor.g, outputs)
    return factor.at(g) if inputs is None else Factor(product(factor.a, inputs), g)


def pieces(factor: Factor) -> Iterator[slice]:
    """Cut the points so that the gradients of each piece may be materialised."""
    step = max(1, DENSE_ELEMENTS // factor.elements)
    for start in range(0, len(factor), step):
        yield slice(start, min(start + step, len(factor)))


def by_pieces(factor: Factor, reduce: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply `reduce` to materialised gradients [b, o, i] piece by piece and join what it returns."""
    return torch.cat([reduce(materialise(factor[piece])) for piece in pieces(factor)])


@singledispatch
def dots(factor: Factor, gradients: Tensor) -> Tensor:
    """Inner products of B per-point gradients with k others.

    Args:
        factor: of one function.
        gradients: [k, o, i].

    Returns:
        [B, k].
    """
    k, o, i = gradients.shape
    if factor.a.shape[1] > 1 or k > max(o, i):  # measured: with fewer, forming gradients costs up to 10 times as much
        flat = gradients.flatten(1).T  # [o i, k]
        return by_pieces(factor, lambda full: product(full.flatten(1), flat))
    a, g = factor.a[:, 0], factor.g[:, 0]  # [B, i], [B, o]
    if i <= o:  # the smaller of the two leaves the smaller intermediate
        return _contract(g, gradients.mT.reshape(k * i, o), a)
    return _contract(a, gradients.reshape(k * o, i), g)


@singledispatch
def add_weighted(factor: Factor, total: Tensor, weights: Tensor) -> None:
    """Add sum_b w_b G_b, for weights [B], to a total [o, i] in place."""
    total += product((factor.g * weights[:, None, None]).flatten(0, 1).T, factor.a.flatten(0, 1))


@singledispatch
def squared_norms(factor: Factor) -> Tensor:
    """Squared norms of the gradients, [B]."""
    if factor.a.shape[1] == 1:
        return factor.a[:, 0].square().sum(1) * factor.g[:, 0].square().sum(1)
    return by_pieces(factor, lambda full: full.flatten(1).square().sum(1))


def total(factors: Factors, of_block: Callable[[str, Factor], Tensor]) -> Tensor:
    """Sum over blocks of what `of_block` gives for each, in float64."""
    sums = [of_block(name, factor).double() for name, factor in factors.items()]
    return torch.stack(sums).sum(0)


def _contract(left: Tensor, middle: Tensor, right: Tensor) -> Tensor:
    partial = product(left, middle.T).view(len(left), -1, right.shape[1])  # [B, k, d]
    return (partial @ right[:, :, None])[:, :, 0]
