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
from influence.factored import Factor
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
class _Form:
    """What a reading is made of its tensors by, and where it was."""

    blocks: tuple[str, ...]
    tables: dict[str, int]
    device: torch.device

    @classmethod
    def of(cls, reading: Reading) -> "_Form":
        tables = {name: one.table for name, one in reading.losses.items() if isinstance(one, TableFactor)}
        return cls(tuple(reading.losses), tables, reading.labels.device)

    def reading(self, tensors: Sequence[Tensor]) -> Reading:
        """From what `_tensors` took apart."""
        said, labels, *rest = (tensor.to(self.device) for tensor in tensors)
        losses, roots = {}, {}
        for place, name in enumerate(self.blocks):
            inputs, g, root = rest[3 * place : 3 * place + 3]
            table = self.tables.get(name)
            losses[name] = Factor(inputs, g) if table is None else TableFactor(inputs, g, table)
            roots[name] = losses[name].at(root)
        if are_targets(labels):
            return Reading(said.new_empty(len(labels), 0), labels, losses, roots, said)
        return Reading(said, labels, losses, roots)


@dataclass(frozen=True)
class _OnDisk:
    """Where the tensors of a reading lie in the file."""

    offset: int
    parts: tuple[_Layout, ...]


class FactorCache:
    """Keeps readings with roots by number, first come, first kept; on the host, wherever they are read.

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
        self._forms: dict[int, _Form] = {}
        self._in_memory: dict[int, list[Tensor]] = {}
        self._on_disk: dict[int, _OnDisk] = {}
        self._end = 0
        self.held = 0

    def get(self, number: int) -> Reading | None:
        """The reading of a batch, if it was kept."""
        if number not in self._forms:
            return None
        tensors = self._in_memory.get(number)
        return self._forms[number].reading(self._load(self._on_disk[number]) if tensors is None else tensors)

    def put(self, number: int, reading: Reading) -> None:
        """Keep a reading where there is room for it; never what is kept already."""
        tensors = _tensors(reading)
        size = _size(tensors)
        if number in self._forms or size > max(self._left, self._left_on_disk):
            return
        self._forms[number], held = _Form.of(reading), [tensor.cpu() for tensor in tensors]
        if size <= self._left:
            self._in_memory[number] = held
            self._left -= size
            self.held += size
        else:
            self._on_disk[number] = self._store(held)
            self._left_on_disk -= size

    def _store(self, tensors: Sequence[Tensor]) -> _OnDisk:
        assert self._file is not None  # checked with the budget
        where = _OnDisk(self._end, tuple(map(_Layout.of, tensors)))
        self._file.seek(self._end)
        for tensor, layout in zip(tensors, where.parts):
            self._end += self._file.write(_bytes(tensor.permute(layout.order).contiguous()))
        return where

    def _load(self, where: _OnDisk) -> list[Tensor]:
        assert self._file is not None
        self._file.seek(where.offset)
        tensors = []
        for layout in where.parts:
            tensor = torch.empty(layout.shape, dtype=layout.dtype)
            if self._file.readinto(_bytes(tensor)) != tensor.nbytes:
                raise InfluenceError("the factor cache's file ends early: was it cut or written to by someone else?")
            tensors.append(tensor.permute([layout.order.index(d) for d in range(tensor.ndim)]))
        return tensors


def _tensors(reading: Reading) -> list[Tensor]:
    """Every tensor once; `losses` and `roots` share their inputs."""
    assert reading.roots is not None
    tensors = [reading.logits if reading.of_tokens is None else reading.of_tokens, reading.labels]
    for name, factor in reading.losses.items():
        tensors += [factor.inputs, factor.g, reading.roots[name].g]
    return tensors


def _size(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.numpy()).cast("B")  # type: ignore[arg-type]
