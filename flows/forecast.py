"""What a cycle will take, foretold from a trial: seconds of each stage, memory of a rank, disk.

Each phase of a rank's work grows in its own way from the trial to the cycle: with the steps, with the points of a rank,
with their square, or not at all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from flows.config import Config
from flows.plans import Job
from flows.ranks.probe import CURVATURE
from flows.recipe import resume_points, save_points, steps_for
from flows.retraining import ARMS
from flows.sections.scoring import EstimatorName
from flows.trial import STEPS, TrainTrial, Trial
from flows.workload import CACHE_BYTES

STATE_COPIES = 6
"""Of the parameters' bytes, in a state and the one before it: float32 parameters and AdamW's two moments, twice."""
NEIGHBOUR_COPIES = 3
"""Of the inputs' bytes, while nearest neighbours are sought: as given, centered, and on the way to that."""


@dataclass(frozen=True)
class Forecast:
    """What is foretold.

    Attributes:
        seconds: By stage, its ranks' start included.
        memory: By program, most bytes that a rank holds, what its imports take included.
        device_memory: By program, on a rank's GPU.
        kept: Bytes of checkpoints and scores that stay.
        disk: Bytes that are needed at most while the cycle runs.
    """

    seconds: Mapping[str, float]
    memory: Mapping[str, int]
    device_memory: Mapping[str, int]
    kept: int
    disk: int


@dataclass(frozen=True)
class Powers:
    """With which power of the number of points an estimator's phases and memory grow, beyond what each point takes.

    Attributes:
        fitting: Once the points are read.
        solving: Of a query.
        scoring: Of a point.
        memory: Of its fitted curvature.
    """

    fitting: int = 0
    solving: int = 0
    scoring: int = 0
    memory: int = 0


POWERS: Mapping[EstimatorName, Powers] = {
    "dual": Powers(fitting=3, solving=1, scoring=1, memory=2),
    "arnoldi": Powers(fitting=1, memory=1),
    "pcg": Powers(fitting=1, solving=1, scoring=1, memory=1),
}
"""Of estimators that hold the factors of all points; 0 for the others."""


def foretell(trial: Trial, config: Config, in_train: int) -> Forecast:
    """What the cycle will take.

    Args:
        trial: Of the same settings.
        config: The settings.
        in_train: Points that are trained on; all are scored.
    """
    steps = steps_for(config.training, in_train)
    saved = len(save_points(config.training, steps))
    seeds = config.guardrail.seeds
    others = seeds - 1 + seeds * (len(ARMS) - 1)
    kept = _kept(trial, config, steps, saved, others)
    seconds = {"score": _scoring(trial, config, in_train)}
    if not config.training.command:
        own = {"train": [saved], "retrain": [1] * others}
        seconds |= {stage: _training(trial.train, config, steps, models) for stage, models in own.items()}
    launches = {"train": trial.train.launched, "score": trial.score.launched}
    return Forecast(
        seconds=seconds,
        memory={"train": launches["train"].spent.memory, "score": _score_memory(trial, config)},
        device_memory={
            name: found.spent.device_memory for name, found in launches.items() if found.spent.device_memory
        },
        kept=kept,
        disk=kept + max(STATE_COPIES * trial.train.checkpoint_bytes, _parts(trial, config)),
    )


def _training(trial: TrainTrial, config: Config, steps: int, saved: list[int]) -> float:
    """Seconds of a launch that trains models with so many checkpoints each."""
    seconds = trial.launched.spent.seconds
    first, second = (seconds[f"making the engine of baseline, seed {seed}"] for seed in range(2))
    step = seconds["training baseline, seed 1"] / STEPS
    once = second + seconds["judging"] / 2
    checkpoint, state = seconds["saving parameters"] / trial.saved, 0.0
    if trial.states:
        state = seconds["saving the state"] / trial.states
    total = trial.launched.process + seconds["start"] + first - second
    for count in saved:
        states = resume_points(config.training, _job(config, steps, count))
        total += once + steps * step + count * checkpoint + len(states) * state
    return total


def _job(config: Config, steps: int, saved: int) -> Job:
    save_at = save_points(config.training, steps) if saved > 1 else (steps,)
    return Job(role="baseline", seed=0, steps=steps, planned=steps, folder=config.workspace, save_at=save_at)


def _scoring(trial: Trial, config: Config, in_train: int) -> float:
    launched = trial.score.launched
    growth = _growth(trial, config, in_train)
    phases = dict(launched.spent.seconds) | {
        "start": trial.train.launched.spent.seconds["start"]
    }  # which read all points
    found = (
        seconds * next((g for name, g in growth.items() if phase.startswith(name)), 1.0)
        for phase, seconds in phases.items()
    )
    return launched.process + math.fsum(found)


def _growth(trial: Trial, config: Config, in_train: int) -> Mapping[str, float]:
    """How many times longer than in the trial each phase is, by how its name begins; the others are as long."""
    scoring, few = config.scoring, trial.score.points
    more, own = trial.points / few, _own(config, trial.points) / _own(config, few)
    powers = POWERS.get(scoring.estimator, Powers())
    seen = 1 - 1 / scoring.folds
    steps = steps_for(config.training, math.ceil(seen * in_train)) - 1  # the first is part of making a model
    short = math.ceil(seen * few / config.training.batch_size) - 1  # one epoch
    return {
        "finding the neighbours": more**2,
        "out-of-fold models": steps / max(1, short),
        "answers of out-of-fold models": more,
        "curvature": own,
        "decomposing the curvature": more**powers.fitting,
        "solving the queries": more**powers.solving,
        "probing the blocks": min(CURVATURE, trial.points) / min(CURVATURE, few),
        "scoring the queries": more**powers.scoring,
        "scoring": own * more**powers.scoring,
        "writing shards": own,
    }


def _own(config: Config, points: int) -> int:
    """Chunks that the rank with most of them reads."""
    ranks = 1 if config.scoring.placement == "split" else config.scoring.ranks
    return math.ceil(math.ceil(points / config.scoring.chunk) / ranks)


def _score_memory(trial: Trial, config: Config) -> int:
    score, more = trial.score, trial.points / trial.score.points
    reported, powers = score.launched.reported, POWERS.get(config.scoring.estimator, Powers())
    held: int = reported["data_bytes"]
    data = held * more if held * more <= CACHE_BYTES else 0.0
    growing: int = reported["cache_bytes"] + reported["column_bytes"]
    curvature = score.parts_bytes["curvature"] * (more**powers.memory - 1)
    neighbours = NEIGHBOUR_COPIES * trial.points * score.input_bytes
    later = max(growing * (more - 1) + curvature, neighbours)
    return round(score.launched.spent.memory + data - held + later)


def _kept(trial: Trial, config: Config, steps: int, saved: int, others: int) -> int:
    train, seeds = trial.train, config.guardrail.seeds
    models = (saved + others) * train.checkpoint_bytes + (1 + others) * train.outcome_bytes
    rows = trial.score.shard_bytes * trial.points / trial.score.points
    return round(models + train.record_bytes * steps * seeds + rows)


def _parts(trial: Trial, config: Config) -> int:
    score, more = trial.score, trial.points / trial.score.points
    powers = POWERS.get(config.scoring.estimator, Powers())
    grown = {"fold": more, "chunk": more, "curvature": more**powers.memory}
    return round(sum(size * grown[kind] for kind, size in score.parts_bytes.items()))
