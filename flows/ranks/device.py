"""Where a rank computes: on its GPU, if the machine has any and `DS_ACCELERATOR` says nothing else, or on the CPU."""

from __future__ import annotations

import os
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

T = TypeVar("T")


def device() -> torch.device:
    """Of this rank."""
    if os.environ.get("DS_ACCELERATOR", "cuda") == "cuda" and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return torch.device("cpu")


def backend() -> str:
    """Of the process group: tensors on the CPU go through gloo in any case."""
    return "cpu:gloo,cuda:nccl" if device().type == "cuda" else "gloo"


def here(batch: T) -> T:
    """A batch with its tensors on this rank's device."""
    moved: T = tree_map_only(Tensor, lambda tensor: tensor.to(device()), batch)
    return moved
