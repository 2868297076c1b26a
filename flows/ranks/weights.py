"""A checkpoint's parameters put into the workload's model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_model
from torch import nn

from flows.errors import BadInput
from storage import checkpoints


def load_weights(model: nn.Module, checkpoint: Path) -> None:
    """Load every parameter and buffer of the model from a committed checkpoint.

    Raises:
        BadInput: The checkpoint is of another model.
        storage.errors.CheckpointDamaged: It is not what was written.
    """
    tensors = checkpoints.read_tensors(checkpoints.verify(checkpoint).path)
    with _same_model(checkpoint):
        model.load_state_dict({name: torch.from_numpy(value) for name, value in tensors.items()})


def weights_of(model: nn.Module) -> dict[str, NDArray[Any]]:
    """Every parameter and buffer, as it is saved: in float32."""
    return {name: value.detach().float().cpu().numpy().copy() for name, value in model.state_dict().items()}


def load_file(model: nn.Module, file: Path) -> None:
    """Load every parameter and buffer of the model from a safetensors file; shared ones may stand there once.

    Raises:
        BadInput: The file is missing, something else, of another model or not finite.
    """
    if not file.is_file():
        raise BadInput(f"checkpoint {file}: no such file")
    try:
        with _same_model(file):
            load_model(model, file)
    except SafetensorError as error:
        raise BadInput(f"checkpoint {file}: not a safetensors file: {error}") from error
    for name, value in model.state_dict().items():
        if not bool(value.isfinite().all()):
            raise BadInput(f"checkpoint {file}: {name} is not finite; give one of before the training diverged")


@contextmanager
def _same_model(checkpoint: Path) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        detail = " ".join(str(error).split())
        raise BadInput(f"checkpoint {checkpoint} is of another model than the workload's: {detail[:300]}") from error
