"""Activations that are computed again in the backward pass instead of being kept."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from flows.errors import BadInput


def recompute(model: nn.Module, globs: Sequence[str]) -> None:
    """Let the modules of matching names keep their inputs only.

    Raises:
        BadInput: A glob matches no module.
    """
    modules = dict(model.named_modules())
    for glob in globs:
        found = [module for name, module in modules.items() if name and fnmatchcase(name, glob)]
        if not found:
            names = ", ".join(list(modules)[1:20])
            raise BadInput(f"training.activation_checkpointing: {glob!r} matches no module; the model has {names}")
        for module in found:
            module.forward = partial(checkpoint, module.forward, use_reentrant=False)
