"""A model in evaluation mode for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without gradients; the mode that it had is restored. DeepSpeed leaves its engine's own flag alone: we set it."""
    training = model.training
    model.eval()
    model.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
        model.training = training
