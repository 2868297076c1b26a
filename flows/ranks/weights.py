"""A checkpoint's parameters put into the workload's model."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from flows.errors import BadInput
from storage import checkpoints


def load_weights(model: nn.Module, checkpoint: Path) -> None:
    """Load every parameter and buffer of the model.

    Raises:
        BadInput: The checkpoint is of another model.
        storage.errors.CheckpointDamaged: It is not what was written.
    """
    tensors = checkpoints.read_tensors(checkpoints.verify(checkpoint).path)
    try:
        model.load_state_dict({name: torch.from_numpy(value) for name, value in tensors.items()})
    except RuntimeError as error:
        detail = " ".join(str(error).split())
        raise BadInput(f"checkpoint {checkpoint} is of another model than the workload's: {detail[:300]}") from error
