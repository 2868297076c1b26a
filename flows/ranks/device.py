"""Where a rank computes, and what tensors travel through: as `[launch]` says, or one line on why not."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch.utils._pytree import tree_map

from flows.errors import BadInput
from flows.sections.launching import LaunchConfig

T = TypeVar("T")
CPU = torch.device("cpu")


def device_of(launch: LaunchConfig, local: int) -> torch.device:
    """Of a rank, by its number among those of its machine.

    Raises:
        BadInput: A GPU is asked for and there is none, or none for this rank.
    """
    if launch.device == "cpu":
        return CPU
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not gpus and (launch.device == "cuda" or launch.backend == "nccl"):
        given = f"launch.device = {launch.device!r}" if launch.device == "cuda" else "launch.backend = 'nccl'"
        raise BadInput(f"{given}, and torch finds no GPU on this machine; mend that, or leave the key out")
    if gpus and local >= gpus:
        raise BadInput(
            f"launch.device = {launch.device!r}: {local + 1} ranks on this machine, and torch finds {gpus} GPUs; "
            'each takes one: give fewer training.ranks or scoring.ranks, or launch.device = "cpu"'
        )
    return torch.device("cuda", local) if gpus else CPU


def backend_of(launch: LaunchConfig, device: torch.device) -> str:
    """Of the process group: what is on the CPU travels by gloo in any case."""
    return "gloo" if device == CPU or launch.backend == "gloo" else f"cpu:gloo,{device.type}:nccl"


def moved(batch: T, device: torch.device) -> T:
    """A batch of the CPU, of whatever nesting, on a device: its tensors, and what else has a method `to`."""
    if device == CPU:
        return batch
    there: T = tree_map(lambda leaf: leaf.to(device) if hasattr(leaf, "to") else leaf, batch)
    return there
