"""The random numbers of a rank: whatever model, loss and data draw outside generators of their own."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def seed_all(seed: int) -> None:
    """Seed torch (every device), Python and numpy."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def draws() -> dict[str, Any]:
    """Where they stand, in tensors and plain types."""
    name, key, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(key).astype(np.int64)), *rest),
    }


def restore(draws: Mapping[str, Any]) -> None:
    """Let them go on from where `draws` found them."""
    torch.set_rng_state(draws["torch"])
    if draws["cuda"] is not None and torch.cuda.is_initialized():  # or this rank computes on the CPU now
        torch.cuda.set_rng_state(draws["cuda"])
    random.setstate(draws["python"])
    name, key, *rest = draws["numpy"]
    np.random.set_state((name, key.numpy().astype(np.uint32), *rest))
