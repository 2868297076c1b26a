"""What follows from the training settings: how many steps, at which learning rates, and what is saved when."""

from __future__ import annotations

import math

from flows.plans import Job
from flows.sections.training import TrainingConfig


def steps_for(training: TrainingConfig, points: int) -> int:
    """Optimizer steps of the configured epochs over so many points."""
    return training.epochs * math.ceil(points / training.batch_size)


def learning_rate(training: TrainingConfig, step: int, steps: int) -> float:
    """Of one optimizer step, from 1, of so many."""
    return training.learning_rate


def save_points(training: TrainingConfig, steps: int) -> tuple[int, ...]:
    """The steps after which the baseline's parameters are saved."""
    return tuple(sorted({max(1, round(share * steps)) for share in training.checkpoints}))


def resume_points(training: TrainingConfig, job: Job) -> frozenset[int]:
    """The steps after which the state of a job is saved."""
    every = max(1, round(training.resume_every * job.steps))
    return frozenset({*job.save_at, *range(every, job.steps, every)}) - {job.steps}
