"""Where tensors are: what is drawn or read on the CPU follows the model to its device, and small answers come back."""

from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def on(device: torch.device, value: T) -> T:
    """A tensor, or a dataclass with tensors in its fields and in those of its dataclasses, on a device."""
    moved: T = _on(device, value)
    return moved


def _on(device: torch.device, value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if not is_dataclass(value) or isinstance(value, type):
        return value
    return replace(value, **{field.name: _on(device, getattr(value, field.name)) for field in fields(value)})
