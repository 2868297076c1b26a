"""A model in bfloat16 that takes and gives what the workload's own does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from flows.sections.base import Precision


def in_precision(model: nn.Module, precision: Precision) -> nn.Module:
    """The model itself, computing in this precision: in bf16, inputs are rounded to it and outputs are float32."""
    if precision == "bf16":
        model.bfloat16()
        model.register_forward_pre_hook(_rounded, with_kwargs=True)
        model.register_forward_hook(lambda _, __, outputs: _to(torch.float32, outputs))
    return model


def _rounded(_: nn.Module, args: Any, kwargs: Any) -> Any:
    return _to(torch.bfloat16, args), _to(torch.bfloat16, kwargs)


def _to(dtype: torch.dtype, values: Any) -> Any:
    return tree_map_only(Tensor, lambda value: value.to(dtype) if value.is_floating_point() else value, values)
