"""Readings kept between passes, in memory and then in a file, within a fixed budget.

What does not fit is computed again: the budget bounds memory, never the result. The file is the caller's to close.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from influence.errors import InfluenceError
from influence.factored import Factor, Factors
from influence.reading import Reading
from influence.sparse import TableFactor
from influence.tokens import are_targets


class CacheFile(Protocol):
    """A binary file, seekable and open for reading and writing."""

    def seek(self, offset: int, /) -> int: ...  # noqa: D102
    def write(self, data: memoryview, /) -> int: ...  # noqa: D102
    def readinto(self, data: memoryview, /) -> int: ...  # noqa: D102


@dataclass(frozen=True)
class _Layout:
    """How a tensor lies in memory: it comes back the same way, because a product rounds differently in another.

    Attributes:
        order: dimensions, slowest first.
        shape: in that order.
        dtype: of the tensor.
    """

    order: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> "_Layout":
        order = tuple(sorted(range(tensor.ndim), key=lambda d: tensor.stride(d) or math.inf, reverse=True))
        return cls(order, tuple(tensor.shape[d] for d in order), tensor.dtype)


@dataclass(frozen=True)
class _OnDisk:
    """Where the tensors of a reading lie in the file, and what they are."""

    offset: int
    parts: tuple[_Layout, ...]
    blocks: tuple[str, ...]
    tables: dict[str, int]


class FactorCache:
    """Keeps readings with roots by number, first come, first kept.

    Args:
        memory: bytes that may be kept in memory.
        disk: bytes that may be kept in `file` once memory is full.
        file: where; needed if `disk` is not 0.

    Attributes:
        held: bytes kept in memory.
    """

    def __init__(self, memory: int, disk: int = 0, file: CacheFile | None = None) -> None:
        if memory < 0 or disk < 0 or (disk and file is None):
            raise InfluenceError(f"factor cache of {memory} bytes of memory and {disk} of disk: give a file for disk")
        self._left, self._left_on_disk, self._file = memory, disk, file
        self._in_memory: dict[int, Reading] = {}
        self._on_disk: dict[int, _OnDisk] = {}
        self._end = 0
        self.held = 0

    def get(self, number: int) -> Reading | None:
        """The reading of a batch, if it was kept."""
        if number in self._in_memory:
            return self._in_memory[number]
        where = self._on_disk.get(number)
        return None if where is None else self._load(where)

    def put(self, number: int, reading: Reading) -> None:
        """Keep a reading where there is room for it; never what is kept already."""
        if number in self._in_memory or number in self._on_disk:
            return
        tensors = _tensors(reading)
        size = sum(tensor.nbytes for tensor in tensors)
        if size <= self._left:
            self._in_memory[number] = reading
            self._left -= size
            self.held += size
        elif size <= self._left_on_disk:
            self._on_disk[number] = self._store(tensors, reading.losses)
            self._left_on_disk -= size

    def _store(self, tensors: Sequence[Tensor], factors: Factors) -> _OnDisk:
        assert self._file is not None  # checked with the budget
        tables = {name: factor.table for name, factor in factors.items() if isinstance(factor, TableFactor)}
        where = _OnDisk(self._end, tuple(map(_Layout.of, tensors)), tuple(factors), tables)
        self._file.seek(self._end)
        for tensor, layout in zip(tensors, where.parts):
            self._end += self._file.write(_bytes(tensor.permute(layout.order).contiguous()))
        return where

    def _load(self, where: _OnDisk) -> Reading:
        assert self._file is not None
        self._file.seek(where.offset)
        tensors = []
        for layout in where.parts:
            tensor = torch.empty(layout.shape, dtype=layout.dtype)
            if self._file.readinto(_bytes(tensor)) != tensor.nbytes:
                raise InfluenceError("the factor cache's file ends early: was it cut or written to by someone else?")
            tensors.append(tensor.permute([layout.order.index(d) for d in range(tensor.ndim)]))
        said, labels, *rest = tensors
        losses, roots = {}, {}
        for place, name in enumerate(where.blocks):
            inputs, g, root = rest[3 * place : 3 * place + 3]
            table = where.tables.get(name)
            losses[name] = Factor(inputs, g) if table is None else TableFactor(inputs, g, table)
            roots[name] = losses[name].at(root)
        if are_targets(labels):
            return Reading(said.new_empty(len(labels), 0), labels, losses, roots, said)
        return Reading(said, labels, losses, roots)


def _tensors(reading: Reading) -> list[Tensor]:
    """Every tensor once; `losses` and `roots` share their inputs."""
    assert reading.roots is not None
    tensors = [reading.logits if reading.of_tokens is None else reading.of_tokens, reading.labels]
    for name, factor in reading.losses.items():
        tensors += [factor.inputs, factor.g, reading.roots[name].g]
    return tensors


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.numpy()).cast("B")  # type: ignore[arg-type]
