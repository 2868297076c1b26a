"""A device of its own, for machines without one: its tensors compute on the CPU, and refuse to be mixed with the CPU's.

What is mixed on it would be mixed on a GPU: an operation that takes tensors of both devices is refused as CUDA refuses
it, with CUDA's exceptions (indices, numbers of no dimension in arithmetic, copies). It tells nothing of how a GPU
computes, of its memory or of its generators.

    with away():
        model.to(AWAY)
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_inside = False


class _Backend:
    """What torch asks a device for; outside `away` there is none."""

    def is_available(self) -> bool:
        return _inside

    def is_initialized(self) -> bool:
        return _inside

    def device_count(self) -> int:
        return int(_inside)

    def current_device(self) -> int:
        return 0

    def manual_seed_all(self, seed: int) -> None:
        """Nothing draws there."""

    def _is_in_bad_fork(self) -> bool:
        return False


class _Hooks(torch._C._acc.PrivateUse1Hooks):
    def is_available(self) -> bool:
        return _inside

    def is_built(self) -> bool:
        return True

    def has_primary_context(self, dev_id: int) -> bool:
        return _inside


# once in a process, which cannot take it back, and before its first backward pass, at which torch counts the devices
_setup_privateuseone_for_python_backend("away", _Backend(), _Hooks())
AWAY = torch.device("away", 0)
CPU = torch.device("cpu")
COPIES = {"aten::copy_", "aten::_copy_from", "aten::_to_copy"}
INDEXED = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index"}


class Mixed(AssertionError, RuntimeError):
    """What CUDA refuses by a RuntimeError; here it is also a test that fails."""


class AwayTensor(Tensor):
    """Of the device, with what it stands for on the CPU in `raw`."""

    raw: Tensor

    @staticmethod
    def __new__(cls, raw: Tensor) -> "AwayTensor":
        size = {} if raw.is_sparse else {"strides": raw.stride(), "storage_offset": raw.storage_offset()}
        made = torch.Tensor._make_wrapper_subclass(cls, raw.shape, **size, dtype=raw.dtype, device=AWAY)
        made.raw = raw
        return made  # type: ignore[no-any-return]

    @property
    def is_sparse(self) -> bool:  # type: ignore[override]
        return self.raw.is_sparse

    def coalesce(self) -> "AwayTensor":
        return AwayTensor(self.raw.coalesce())

    def tolist(self) -> Any:
        """Of a copy, as on a GPU."""
        return self.raw.tolist()

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"AwayTensor({self.raw})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Everywhere(TorchDispatchMode):
    """Sees what has no tensor of the device among its arguments, too: what makes one, and what brings one there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


@contextmanager
def away() -> Iterator[None]:
    """Inside, the device is there."""
    global _inside
    _inside = True
    try:
        with _Everywhere():
            yield
    finally:
        _inside = False


def held(thing: Any) -> dict[str, Tensor]:
    """Every tensor of one or more dimensions that an object holds, by where it stands in it."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()

    def look(where: str, one: Any) -> None:
        if id(one) in seen:
            return
        seen.add(id(one))
        if isinstance(one, Tensor):
            if one.ndim and one.numel():
                found[where] = one
            return
        if isinstance(one, torch.nn.Module):
            return
        inner: Mapping[Any, Any] = one if isinstance(one, Mapping) else getattr(one, "__dict__", {})
        for name, value in dict(enumerate(one) if isinstance(one, list | tuple) else inner).items():
            look(f"{where}.{name}", value)

    look(type(thing).__name__, thing)
    return found


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    asked = kwargs.get("device")
    target = None if asked is None else torch.device(asked).type
    given = list(_tensors((*args, *kwargs.values())))
    raw = {id(one.raw): one for one in given if isinstance(one, AwayTensor)}
    if not raw and target != "away":
        return func(*args, **kwargs)
    if target == "away" and kwargs.get("generator") is not None:
        raise Mixed(f"{func}: a generator of the CPU draws for another device")
    if len(raw) < len(given) and raw and func._schema.name not in COPIES:
        _refuse_mixed(func, args, kwargs)
    if func is torch.ops.aten._efficientzerotensor.default:  # of a forward derivative; it has no memory
        func = torch.ops.aten.zeros.default
    here = {**kwargs, "device": CPU} if asked is not None else kwargs
    found = func(*_bare(args), **_bare(here))
    if func._schema.name == "aten::copy_":
        return args[0]
    if target not in (None, "away"):
        return found
    return tree_map_only(Tensor, lambda one: raw[id(one)] if id(one) in raw else AwayTensor(one), found)


def _refuse_mixed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise Mixed where CUDA would refuse."""
    name, numbers = func._schema.name, torch.Tag.pointwise in func.tags
    for place, argument in enumerate(func._schema.arguments):
        if name in INDEXED and argument.name == "indices":
            continue
        written = argument.alias_info is not None and argument.alias_info.is_write
        for one in _tensors((args[place] if place < len(args) else kwargs.get(argument.name),)):
            number = not one.ndim and not written and (numbers or name in INDEXED)
            if not isinstance(one, AwayTensor) and not number:
                raise Mixed(f"{name}: {argument.name} is on the CPU, and other tensors are away")


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Of the arguments of an operation, which nests them once at most."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _bare(value: Any) -> Any:
    """What arguments stand for."""
    if isinstance(value, AwayTensor):
        return value.raw
    if isinstance(value, dict):
        return {name: _bare(one) for name, one in value.items()}
    return type(value)(map(_bare, value)) if type(value) in (list, tuple) else value
