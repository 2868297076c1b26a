"""One block's gradients made smaller: from factors to the factors of a smaller block.

| sketch | what becomes of G [o, i] | the smaller block |
|---|---|---|
| FactorMask | some rows and some columns | [o', i'], never formed |
| Sides | Po' G Pi | [o', i'], never formed |
| CoordinateMask | some entries | [k, 1] |
| Dense | inner products with k matrices | [k, 1] |
| Buckets (SJLT, one entry per column; Kane & Nelson 2014, arXiv 1012.1577) | sums of entries of random sign | [k, 1] |
| Chain | one sketch after another | of the last |

A vector is a block with the one input 1, at one position, so that a curvature takes it as it takes any free block. A
free block has no inputs to speak of: the sketches of sides leave them as they are and take from its outputs alone.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from influence.calls import Call, Capture, Layout
from influence.errors import InfluenceError
from influence.factored import Factor, by_pieces, dots, rotate
from influence.matmul import product

LARGEST_DENSE = 1 << 26  # entries of a Gaussian matrix: 256 MB


@dataclass(frozen=True)
class SmallLayout:
    """Of a compressed block; nothing is read from a model by it."""

    shape: tuple[int, int]
    free: bool

    def read(self, call: Call) -> Capture:
        """Never: there is no such layer.

        Raises:
            InfluenceError: always.
        """
        raise InfluenceError("a compressed block is of no layer; give the model's own blocks and their compressor")


class Sketch(Protocol):
    """A linear map of the gradients of one block, the same for whatever it is given."""

    @property
    def layout(self) -> SmallLayout:
        """Of the smaller block."""

    @property
    def sampled(self) -> tuple[float, float] | None:
        """How much of the spread of row and of column sums is chance, in [0, 1]; None if they are not a sample."""

    def __call__(self, factor: Factor) -> Factor:
        """The smaller factors, g of shape [B, T, o'], or [R, B, T, o'] of several functions."""

    def adjoint(self, gradients: Tensor) -> Tensor:
        """[k, o', i'] -> [k, o, i]."""


@dataclass(frozen=True)
class FactorMask:
    """Rows and columns kept; in what order does not matter, so they stay in theirs.

    Attributes:
        outputs: kept, [o'].
        inputs: kept, [i'].
        whole: the block's (o, i).
        layout: of the smaller block.
    """

    outputs: Tensor
    inputs: Tensor
    whole: tuple[int, int]
    layout: SmallLayout

    @classmethod
    def drawn(cls, layout: Layout, ratio: float, generator: Generator) -> "FactorMask":
        """At random, of both sides alike."""
        small = sides(layout, ratio)
        outputs, inputs = (_some(count, of, generator) for count, of in zip(small, layout.shape))
        return cls(outputs, inputs, layout.shape, SmallLayout(small, layout.free))

    @property
    def sampled(self) -> tuple[float, float]:
        """Less the more is kept: finite populations."""
        (o, i), (fewer_o, fewer_i) = self.whole, self.layout.shape
        return 1 - fewer_o / o, 1 - fewer_i / i

    def __call__(self, factor: Factor) -> Factor:
        """Index both sides."""
        scaled = factor.g.index_select(-1, self.outputs).mul_(_scale(self.whole, self.layout))
        return Factor(factor.a.index_select(-1, self.inputs), scaled)

    def adjoint(self, gradients: Tensor) -> Tensor:
        """Zeros elsewhere."""
        full = gradients.new_zeros(len(gradients), *self.whole)
        full[:, self.outputs[:, None], self.inputs] = gradients * _scale(self.whole, self.layout)
        return full


@dataclass(frozen=True)
class Sides:
    """A matrix on each side.

    Attributes:
        outputs: Po, [o, o'].
        inputs: Pi, [i, i']; None is the identity.
        layout: of the smaller block.
        sampled: as in `Sketch`.
    """

    outputs: Tensor
    inputs: Tensor | None
    layout: SmallLayout
    sampled: tuple[float, float] | None

    @classmethod
    def drawn(cls, layout: Layout, ratio: float, generator: Generator) -> "Sides":
        """Gaussian."""
        (o, i), (fewer_o, fewer_i) = layout.shape, sides(layout, ratio)
        outputs = torch.randn(o, fewer_o, generator=generator) / math.sqrt(fewer_o)
        inputs = None if layout.free else torch.randn(i, fewer_i, generator=generator) / math.sqrt(fewer_i)
        return cls(outputs, inputs, SmallLayout((fewer_o, fewer_i), layout.free), (1.0, 0.0 if layout.free else 1.0))

    def __call__(self, factor: Factor) -> Factor:
        """Multiply both sides."""
        inputs = None if self.inputs is None else self.inputs.to(factor.a)
        return rotate(factor, inputs, self.outputs.to(factor.g))

    def adjoint(self, gradients: Tensor) -> Tensor:
        """Po Y Pi'."""
        wide = gradients if self.inputs is None else gradients @ self.inputs.to(gradients).T
        return self.outputs.to(gradients) @ wide


@dataclass(frozen=True)
class CoordinateMask:
    """Entries kept.

    Attributes:
        kept: their places in the flat gradient, ascending, [k].
        whole: the block's (o, i).
    """

    kept: Tensor
    whole: tuple[int, int]

    @classmethod
    def drawn(cls, layout: Layout, ratio: float, generator: Generator) -> "CoordinateMask":
        """At random."""
        return cls(_some(fewer(math.prod(layout.shape), ratio), math.prod(layout.shape), generator), layout.shape)

    @property
    def layout(self) -> SmallLayout:
        """A vector."""
        return _vector(len(self.kept))

    @property
    def sampled(self) -> tuple[float, float]:
        """Less the more is kept: a finite population."""
        return 1 - len(self.kept) / math.prod(self.whole), 0.0

    def __call__(self, factor: Factor) -> Factor:
        """Entry (c, d) of g a' is g_c a_d; longer sequences are summed first."""
        if factor.a.shape[1] > 1:
            entries = _of_full(factor, lambda full: full.index_select(1, self.kept))
        else:
            a = factor.a[:, 0].index_select(1, self.kept % self.whole[1])  # [B, k]
            entries = factor.g[..., 0, :].index_select(-1, self.kept // self.whole[1]).mul_(a)
        return _as_factor(entries.mul_(_scale(self.whole, self.layout)))

    def adjoint(self, gradients: Tensor) -> Tensor:
        """Zeros elsewhere."""
        full = gradients.new_zeros(len(gradients), math.prod(self.whole))
        full[:, self.kept] = gradients[..., 0] * _scale(self.whole, self.layout)
        return full.view(-1, *self.whole)


@dataclass(frozen=True)
class Dense:
    """Inner products with given matrices [k, o, i]."""

    matrices: Tensor
    sampled = (1.0, 0.0)

    @classmethod
    def drawn(cls, layout: Layout, ratio: float, generator: Generator) -> "Dense":
        """Gaussian."""
        size = fewer(math.prod(layout.shape), ratio)
        if size * math.prod(layout.shape) > LARGEST_DENSE:
            raise InfluenceError(
                f"a Gaussian matrix of {size} x {math.prod(layout.shape)}: at most {LARGEST_DENSE} entries are drawn; "
                "use SJLT, LoGra or a mask, or a larger ratio"
            )
        return cls(torch.randn(size, *layout.shape, generator=generator) / math.sqrt(size))

    @property
    def layout(self) -> SmallLayout:
        """A vector."""
        return _vector(len(self.matrices))

    def __call__(self, factor: Factor) -> Factor:
        """As cheaply as factors allow."""
        matrices = self.matrices.to(factor.g)
        return _as_factor(_by_function(factor, lambda one: dots(one, matrices)))

    def adjoint(self, gradients: Tensor) -> Tensor:
        """The matrices, weighted."""
        flat = product(gradients[..., 0], self.matrices.to(gradients).flatten(1))
        return flat.view(-1, *self.matrices.shape[1:])


@dataclass(frozen=True)
class Buckets:
    """Every entry, with a random sign, added to one bucket; some buckets may stay empty.

    Attributes:
        bucket: of each entry of the flat gradient, [o i].
        sign: of each, [o i].
        whole: the block's (o, i).
        layout: of the smaller block.
    """

    bucket: Tensor
    sign: Tensor
    whole: tuple[int, int]
    layout: SmallLayout
    sampled = (1.0, 0.0)

    @classmethod
    def drawn(cls, layout: Layout, ratio: float, generator: Generator) -> "Buckets":
        """At random."""
        entries = math.prod(layout.shape)
        size = fewer(entries, ratio)
        bucket = torch.randint(size, (entries,), generator=generator)
        sign = torch.randint(2, (entries,), generator=generator).float() * 2 - 1
        return cls(bucket, sign, layout.shape, _vector(size))

    def __call__(self, factor: Factor) -> Factor:
        """Add up."""
        sign = self.sign.to(factor.g)

        def added(full: Tensor) -> Tensor:
            return full.new_zeros(len(full), self.layout.shape[0]).index_add_(1, self.bucket, full.mul_(sign))

        return _as_factor(_of_full(factor, added))

    def adjoint(self, gradients: Tensor) -> Tensor:
        """Each entry from its bucket."""
        return (gradients[:, self.bucket, 0] * self.sign.to(gradients)).view(-1, *self.whole)


@dataclass(frozen=True)
class Chain:
    """One sketch after another: unbiased if both are, and drawn independently."""

    first: Sketch
    second: Sketch
    sampled = None

    @property
    def layout(self) -> SmallLayout:
        """Of what the second gives."""
        return self.second.layout

    def __call__(self, factor: Factor) -> Factor:
        """The second of the first."""
        return self.second(self.first(factor))

    def adjoint(self, gradients: Tensor) -> Tensor:
        """The other way round."""
        return self.first.adjoint(self.second.adjoint(gradients))


def fewer(count: int, ratio: float) -> int:
    """So many times fewer, rounded up, hence at least 1."""
    return math.ceil(count / ratio)


def sides(layout: Layout, ratio: float) -> tuple[int, int]:
    """Outputs and inputs of a block that is so many times smaller, both sides alike."""
    o, i = layout.shape
    return (fewer(o, ratio), i) if layout.free else (fewer(o, math.sqrt(ratio)), fewer(i, math.sqrt(ratio)))


def _vector(size: int) -> SmallLayout:
    return SmallLayout((size, 1), free=True)


def _some(count: int, of: int, generator: Generator) -> Tensor:
    return torch.randperm(of, generator=generator)[:count].sort().values


def _scale(whole: tuple[int, int], layout: SmallLayout) -> float:
    """Of gradients, so that inner products of what is kept are unbiased."""
    return math.sqrt(math.prod(whole) / math.prod(layout.shape))


def _as_factor(values: Tensor) -> Factor:
    """Vectors [B, k], or [R, B, k] of several functions, as factors of one position."""
    return Factor(values.new_ones(values.shape[-2], 1, 1), values[..., None, :])


def _by_function(factor: Factor, of_one: Callable[[Factor], Tensor]) -> Tensor:
    """[B, k], or [R, B, k] of several functions."""
    if factor.g.ndim == 3:
        return of_one(factor)
    return torch.stack([of_one(Factor(factor.a, g)) for g in factor.g])


def _of_full(factor: Factor, reduce: Callable[[Tensor], Tensor]) -> Tensor:
    """What `reduce` makes of flat gradients [b, o i], piece by piece."""
    return _by_function(factor, lambda one: by_pieces(one, lambda full: reduce(full.flatten(1))))
