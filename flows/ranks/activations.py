"""Activations that are computed again in the backward pass instead of being kept."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from flows.errors import BadInput


def recompute(model: nn.Module, globs: Sequence[str]) -> None:
    """Let the modules of matching names keep their inputs only: of nested ones the outermost, so that each runs twice.

    Raises:
        BadInput: A glob matches no module.
    """
    called = {name: one for name, one in model.named_modules() if name and type(one).forward is not nn.Module.forward}
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in called):
            names = ", ".join(list(called)[:19])
            raise BadInput(f"training.activation_checkpointing: {glob!r} matches no module; the model has {names}")
    outermost: list[str] = []
    for name, module in called.items():  # a module comes before those in it
        inside = any(name.startswith(f"{outer}.") for outer in outermost)
        if not inside and any(fnmatchcase(name, glob) for glob in globs):
            module.forward = partial(checkpoint, module.forward, use_reentrant=False)
            outermost.append(name)
