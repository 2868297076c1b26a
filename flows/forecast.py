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
from flows.trial import TrainTrial, Trial
from flows.workload import CACHE_BYTES

STATE_COPIES = 6
"""Of the parameters' bytes, in a state and the one before it: float32 parameters and AdamW's two moments, twice."""
NEIGHBOUR_COPIES = 3
"""Of the inputs' bytes, while nearest neighbours are sought: as given, centered, and on the way to that."""


SIGNAL_COPIES = 15
"""Of a float64 number for each point and class, while the signals of suspicion are weighed."""
MEGABYTE = 2**20


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
    cache = config.scoring.factor_cache.disk * MEGABYTE * config.scoring.ranks
    seconds = {"score": _scoring(trial, config, in_train)}
    memory = {"score": _score_memory(trial, config)}
    if not config.training.command:
        own = {"train": [saved], "retrain": [1] * others}
        seconds |= {stage: _training(trial.train, config, steps, models) for stage, models in own.items()}
        memory["train"] = trial.train.launched.spent.memory
    launches = {"train": trial.train.launched, "score": trial.score.launched}
    return Forecast(
        seconds=seconds,
        memory=memory,
        device_memory={
            name: found.spent.device_memory for name, found in launches.items() if found.spent.device_memory
        },
        kept=kept,
        disk=kept + max(STATE_COPIES * trial.train.checkpoint_bytes, _parts(trial, config) + cache),
    )


def _training(trial: TrainTrial, config: Config, steps: int, saved: list[int]) -> float:
    """Seconds of a launch that trains models with so many checkpoints each."""
    seconds = trial.launched.spent.seconds
    first, second = (seconds[f"making the engine of baseline, seed {seed}"] for seed in range(2))
    step = seconds["training baseline, seed 1"] / trial.steps
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
    recipe = trial.score.fold_training or config.training
    steps = steps_for(recipe, math.ceil(seen * in_train)) - 1  # the first is part of making a model
    tried = sum(phase.startswith("out-of-fold") for phase in trial.score.launched.spent.seconds)  # rounds, at most two
    rounds = 2 / max(1, tried)  # none without classes
    return {
        "finding the neighbours": more**2,
        "making an out-of-fold model": rounds,
        "out-of-fold models": rounds * steps / (trial.score.fold_steps - 1),
        "answers of out-of-fold models": rounds * more,
        "keeping the answers": rounds,
        "weighing the signals": rounds * more,
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
    cache: float = min(reported["cache_bytes"] * more, config.scoring.factor_cache.memory * MEGABYTE)
    growing: float = cache - reported["cache_bytes"] + reported["column_bytes"] * (more - 1)
    curvature = score.parts_bytes["curvature"] * (more**powers.memory - 1)
    neighbours = NEIGHBOUR_COPIES * trial.points * score.input_bytes
    signals = SIGNAL_COPIES * 8 * trial.points * score.classes
    later = max(growing + curvature, neighbours, signals)
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
