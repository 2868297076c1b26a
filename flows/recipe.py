"""What follows from the training settings: how many steps, and when parameters are saved."""

from __future__ import annotations

import math

from flows.sections.training import TrainingConfig


def steps_for(training: TrainingConfig, points: int) -> int:
    """Optimizer steps of the configured epochs over so many points."""
    return training.epochs * math.ceil(points / training.batch_size)


def save_points(training: TrainingConfig, steps: int) -> tuple[int, ...]:
    """The steps after which the baseline's parameters are saved."""
    return tuple(sorted({max(1, round(share * steps)) for share in training.checkpoints}))
