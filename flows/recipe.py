"""What follows from the training settings: how many steps, at which learning rates, and what is saved when."""

from __future__ import annotations

import math

from flows.plans import Job
from flows.sections.training import TrainingConfig


def steps_for(training: TrainingConfig, points: int) -> int:
    """Optimizer steps of the configured epochs over so many points."""
    return training.epochs * math.ceil(points / training.batch_size)


def learning_rate(training: TrainingConfig, step: int, planned: int) -> float:
    """Of one optimizer step, from 1, of so many planned; never 0."""
    warm = round(training.warmup * planned)
    if step <= warm:
        return training.learning_rate * step / warm
    passed = (step - warm - 1) / (planned - warm)
    left = {"constant": 1.0, "linear": 1 - passed, "cosine": (1 + math.cos(math.pi * passed)) / 2}
    return training.learning_rate * left[training.schedule]


def horizon(training: TrainingConfig, steps: int, planned: int) -> float:
    """Sum of the learning rates of so many steps, of those planned."""
    return math.fsum(learning_rate(training, step, planned) for step in range(1, steps + 1))


def save_points(training: TrainingConfig, steps: int) -> tuple[int, ...]:
    """The steps after which the baseline's parameters are saved."""
    return tuple(sorted({max(1, round(share * steps)) for share in training.checkpoints}))


def resume_points(training: TrainingConfig, job: Job) -> frozenset[int]:
    """The steps after which the state of a job is saved."""
    every = max(1, round(training.resume_every * job.planned))
    return frozenset({*job.save_at, *range(every, job.steps, every)}) - {job.steps}
