"""Several blocks as one vector of parameters: their gradients side by side, [k, p], in float64."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeVar

import torch
from torch import Tensor

from influence.blocks import Block, Shapes, shapes_of
from influence.errors import InfluenceError
from influence.factored import DENSE_ELEMENTS, Factors, Gradients, materialise
from influence.refusals import refuse_tables

Entry = TypeVar("Entry")


@dataclass(frozen=True)
class Joint:
    """Where each block lies in the vector.

    Attributes:
        shapes: of one gradient of each block.
    """

    shapes: Shapes

    @classmethod
    def of(cls, blocks: Sequence[Block]) -> "Joint":
        """The blocks in their order.

        Raises:
            InfluenceError: one is a large table, whose gradients are not formed.
        """
        refuse_tables(blocks)
        return cls(shapes_of(blocks))

    @property
    def names(self) -> tuple[str, ...]:
        """Of the blocks."""
        return tuple(self.shapes)

    @property
    def name(self) -> str:
        """The blocks' joined names."""
        return "+".join(self.shapes)

    @property
    def parameters(self) -> int:
        """P."""
        return sum(map(prod, self.shapes.values()))

    def parts(self, given: Mapping[str, Entry]) -> list[Entry]:
        """What is given for each block, in their order.

        Raises:
            InfluenceError: other blocks are given.
        """
        if given.keys() != self.shapes.keys():
            raise InfluenceError(f"blocks {', '.join(given)} given, the curvature is that of {', '.join(self.shapes)}")
        return [given[name] for name in self.shapes]

    def join(self, gradients: Gradients, dtype: torch.dtype = torch.float64) -> Tensor:
        """[k, p]."""
        return torch.cat([gradient.flatten(1).to(dtype) for gradient in self.parts(gradients)], 1)

    def split(self, joined: Tensor) -> dict[str, Tensor]:
        """The blocks of [k, p], as views."""
        parts = joined.split([prod(shape) for shape in self.shapes.values()], 1)
        return {name: part.unflatten(1, shape) for (name, shape), part in zip(self.shapes.items(), parts)}

    def split_like(self, joined: Tensor, gradients: Gradients) -> Gradients:
        """The same in the gradients' dtypes."""
        return {name: part.to(gradients[name].dtype) for name, part in self.split(joined).items()}

    def materialise(self, factors: Factors) -> Tensor:
        """The gradients themselves, [b, p], or of several functions [R, b, p]."""
        return torch.cat([materialise(factor).flatten(-2).double() for factor in self.parts(factors)], -1)

    def by_runs(self, factors: Factors) -> Iterator[Tensor]:
        """The same in runs of points, as many as may be held at a time, [b, p]."""
        for run in runs(len(self.parts(factors)[0]), self.parameters):
            yield self.materialise({name: factor[run] for name, factor in factors.items()})

    def probe(self, count: int = 1) -> Tensor:
        """Fixed vectors of random signs, [count, p]."""
        generator = torch.Generator().manual_seed(0)
        return torch.randint(2, (count, self.parameters), generator=generator).double() * 2 - 1


def runs(count: int, width: int) -> Iterator[slice]:
    """Cut `count` things of `width` numbers each into runs that may be held in memory."""
    step = max(1, DENSE_ELEMENTS // max(1, width))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def add_up(parts: Iterable[Tensor]) -> Tensor:
    """The sum of tensors, made in the first of them."""
    each = iter(parts)
    total = next(each)
    for part in each:
        total += part
    return total
