"""What a rank has computed, kept at once, so that after a kill only what is missing is computed.

Parts are named by what they are of, never by a rank: any number of ranks continues what another number began.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any, Protocol, TypeVar, get_args, get_type_hints

import torch
from torch import Tensor

from flows.ranks.rank import Place
from influence import Restorable
from storage.parts import Parts

T = TypeVar("T")


class Keep(Protocol):
    """Where parts are kept."""

    def read(self, name: str, of: str = "") -> dict[str, Tensor] | None:
        """A part, if it is there."""

    def write(self, name: str, tensors: Mapping[str, Tensor], of: str = "") -> None:
        """Keep a part."""


class _Nothing:
    """Keeps nothing."""

    def read(self, name: str, of: str = "") -> dict[str, Tensor] | None:
        """Never there."""
        return None

    def write(self, name: str, tensors: Mapping[str, Tensor], of: str = "") -> None:
        """Not kept."""


NOTHING: Keep = _Nothing()
"""For what is short, or is never continued."""


class Kept:
    """Keeps parts as files; they are read onto the CPU, wherever they came from.

    Attributes:
        found: How many were there.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.found = 0

    def read(self, name: str, of: str = "") -> dict[str, Tensor] | None:
        """A part, if it is there."""
        arrays = self._parts.read(name, of)
        if arrays is None:
            return None
        self.found += 1
        return {key: torch.from_numpy(array) for key, array in arrays.items()}

    def write(self, name: str, tensors: Mapping[str, Tensor], of: str = "") -> None:
        """Keep a part."""
        self._parts.write(name, {key: tensor.detach().cpu().numpy() for key, tensor in tensors.items()}, of)


def kept(keep: Keep, name: str, kind: type[T]) -> T | None:
    """A part that is a frozen dataclass of tensors, other such dataclasses and None, if it is there."""
    tensors = keep.read(name)
    return None if tensors is None else _unpack(kind, tensors, "")


def packed(made: Any, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of such a dataclass, to be kept."""
    tensors: dict[str, Tensor] = {}
    for field in fields(made):
        value = getattr(made, field.name)
        if isinstance(value, Tensor):
            tensors[prefix + field.name] = value
        elif value is not None:
            tensors |= packed(value, f"{prefix}{field.name}.")
    return tensors


def recall(curvatures: Mapping[str, Restorable], keep: Keep, of: str, place: Place) -> bool:
    """Give unfitted curvatures what was kept of them; every rank must call this together.

    Args:
        curvatures: By the names that they are kept by.
        keep: Where.
        of: What else they depend on.
        place: This process.

    Returns:
        Whether all ranks have found all of them; if not, all ranks are to fit them.
    """
    parts = {
        name: {block: keep.read(_name(name, block), of) for block in curvature.blocks}
        for name, curvature in curvatures.items()
    }
    found = torch.tensor(float(all(part is not None for one in parts.values() for part in one.values())))
    place.sum(found)
    if int(found) < place.world:
        return False
    for name, curvature in curvatures.items():
        curvature.restore({block: part for block, part in parts[name].items() if part is not None})
    return True


def keep_fitted(
    curvatures: Mapping[str, Restorable], keep: Keep, of: str, place: Place, own: Collection[str] = ()
) -> None:
    """Keep fitted curvatures, each block by one rank.

    Args:
        curvatures: By the names that they are kept by.
        keep: Where.
        of: What else they depend on.
        place: This process.
        own: Names of those whose blocks no other rank has.
    """
    for name, curvature in curvatures.items():
        for index, (block, part) in enumerate(curvature.snapshot().items()):
            if name in own or index % place.world == place.index:
                keep.write(_name(name, block), part, of)


def _name(curvature: str, block: str) -> str:
    return f"{curvature}-{block}"


def _unpack(kind: type[T], tensors: Mapping[str, Tensor], prefix: str) -> T:
    hints, values = get_type_hints(kind), dict[str, Any]()
    for field in fields(kind):  # type: ignore[arg-type]
        inner, name = _inner(hints[field.name]), prefix + field.name
        if isinstance(inner, type) and is_dataclass(inner):
            there = any(key.startswith(f"{name}.") for key in tensors)
            values[field.name] = _unpack(inner, tensors, f"{name}.") if there else None
        else:
            values[field.name] = tensors.get(name)
    return kind(**values)


def _inner(hint: Any) -> Any:
    """What a field holds where it is not None."""
    return next(kind for kind in get_args(hint) if kind is not type(None)) if isinstance(hint, UnionType) else hint
