"""A short trial: the rank programs themselves, on the ranks that are configured, for a few steps and a few points.

Nothing is measured in another way than in a cycle, so whatever makes a machine slow makes the trial slow, too.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from flows.agents import Launch
from flows.asking import has_classes, inputs_of
from flows.config import Config
from flows.dataset import digest, manifest_of
from flows.launch import Progress, run_ranks
from flows.plans import HOLDOUT, QUERIES, Job, Plan, ScorePlan, TrainPlan, write_plan
from flows.recipe import horizon, resume_points, save_points, steps_for
from flows.sections.training import TrainingConfig
from flows.spent import Spent
from flows.workload import Batches, Sample, Workload, collate_of, for_folds, seeded_model
from storage import checkpoints
from storage.files import read_json, size_of
from storage.trajectory_store import TRAJECTORY

STEPS = 24
"""Of each of the two models that are trained, or more where checkpoints lie close; the first bears what only a first
one does."""
FOLD_STEPS = 6
"""Of each out-of-fold model, at least."""
CHUNKS = 2
"""That each rank scores."""
PARTS = ("fold", "chunk", "curvature")
FLOAT = 4  # bytes


@dataclass(frozen=True)
class Launched:
    """One launch of a program.

    Attributes:
        process: Seconds until the ranks worked, and after.
        spent: What the ranks spent.
        reported: By the first rank.
    """

    process: float
    spent: Spent
    reported: Mapping[str, Any]


@dataclass(frozen=True)
class TrainTrial:
    """Two models of a few steps each.

    Attributes:
        launched: What they took.
        steps: Of each.
        saved: Checkpoints of both.
        states: Of both.
        checkpoint_bytes: Of one.
        outcome_bytes: Of what a model makes of the holdout and query sets.
        record_bytes: Of what a baseline leaves of each step.
    """

    launched: Launched
    steps: int
    saved: int
    states: int
    checkpoint_bytes: int
    outcome_bytes: int
    record_bytes: float


@dataclass(frozen=True)
class ScoreTrial:
    """A few points scored from the checkpoints of a model of the trial.

    Attributes:
        launched: What it took.
        points: How many.
        fold_steps: Of each out-of-fold model.
        classes: C; 0 where there are none.
        shard_bytes: Of all their rows.
        parts_bytes: Of what was kept on the way, by what it is of: `fold`, `chunk`, `curvature`.
        input_bytes: Of a point, as nearest neighbours are measured on it.
        fold_training: What the cycle trains its out-of-fold models by, where the workload has a recipe for them.
    """

    launched: Launched
    points: int
    fold_steps: int
    classes: int
    shard_bytes: int
    parts_bytes: Mapping[str, int]
    input_bytes: int
    fold_training: TrainingConfig | None = None


@dataclass(frozen=True)
class Trial:
    """Both, and of how many points they are."""

    train: TrainTrial
    score: ScoreTrial
    points: int


def measure(config: Config, workload: Workload, folder: Path, show: Callable[[Progress], None]) -> Trial:
    """Run the trial.

    Args:
        config: The settings; ranks, placement and estimator are tried as they are.
        workload: Already checked.
        folder: Removed at the end.
        show: Shows progress.

    Raises:
        BadInput: A rank found its input bad.
        StageFailed: A rank failed.
    """
    try:
        points = workload.points()
        planned = steps_for(config.training, len(points))
        trained = _train(_short(config), digest(manifest_of("train", points)), planned, folder, show)
        few = Sample(points, _few(config))
        scored = _score(config, workload, few, len(points), trained.steps, folder, show)
        return Trial(trained, scored, len(points))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _few(config: Config) -> int:
    """Points of the trial of the scoring: some chunks for each rank, and enough for the neighbours and the folds."""
    scoring = config.scoring
    return max(CHUNKS * scoring.ranks * scoring.chunk, 2 * (scoring.neighbours + 1), 4 * scoring.folds)


def _short(config: Config, share: float = 1.0, epochs: int = 1) -> Config:
    """By our own trainer, so many epochs, and room in the cache for as large a share of the points as in a cycle."""
    plain = {"command": (), "early_stopping": None, "prune_while_learning": None}
    training = config.training.model_copy(update={"epochs": epochs} | plain)
    cache = config.scoring.factor_cache
    less = {"memory": math.ceil(cache.memory * share), "disk": math.ceil(cache.disk * share)}
    scoring = config.scoring.model_copy(update={"factor_cache": cache.model_copy(update=less)})
    return config.model_copy(update={"training": training, "scoring": scoring})


def _steps(config: Config, planned: int) -> int:
    """So many that checkpoints are as many as in a cycle."""
    steps = STEPS
    while steps < planned and len(save_points(config.training, steps)) < len(save_points(config.training, planned)):
        steps *= 2
    return steps


def _train(
    config: Config, train_digest: str, planned: int, folder: Path, show: Callable[[Progress], None]
) -> TrainTrial:
    steps = _steps(config, planned)
    save_at = save_points(config.training, steps)
    jobs = tuple(
        Job(
            role="baseline",
            seed=seed,
            steps=steps,
            planned=max(steps, planned),
            folder=folder / f"model-{seed}",
            save_at=save_at,
        )
        for seed in range(2)
    )
    plan = TrainPlan(config=config, logs=folder / "logs", train_digest=train_digest, jobs=jobs)
    launched = _launch("train", plan, config.training.ranks, show)
    return TrainTrial(
        launched=launched,
        steps=steps,
        saved=2 * len(save_at),
        states=2 * len(resume_points(config.training, jobs[0])),
        checkpoint_bytes=size_of(jobs[1].last),
        outcome_bytes=sum(size_of(jobs[1].folder / name) for name in (HOLDOUT, QUERIES)),
        record_bytes=size_of(jobs[1].folder / TRAJECTORY) / steps,
    )


def _score(
    config: Config,
    workload: Workload,
    points: Sample,
    of: int,
    steps: int,
    folder: Path,
    show: Callable[[Progress], None],
) -> ScoreTrial:
    seen = math.ceil((1 - 1 / config.scoring.folds) * len(points))
    epoch = math.ceil(seen / config.training.batch_size)
    short = _short(config, len(points) / of, epochs=math.ceil(FOLD_STEPS / epoch))
    plan = _score_plan(short, points, steps, horizon(config.training, *[steps_for(config.training, of)] * 2), folder)
    launched = _launch("score", plan, config.scoring.ranks, show)
    light, recipe = for_folds(workload, config.training)
    classes, input_bytes = _of_suspicion(workload, points)
    return ScoreTrial(
        launched=launched,
        points=len(points),
        fold_steps=steps_for(for_folds(workload, short.training)[1], seen),
        classes=classes,
        shard_bytes=sum(path.stat().st_size for path in plan.folder.glob("*.parquet")),
        parts_bytes={kind: sum(map(size_of, plan.folder.glob(f"unfinished/*/{kind}*"))) for kind in PARTS},
        input_bytes=input_bytes,
        fold_training=None if light is workload else recipe,
    )


def _of_suspicion(workload: Workload, points: Sample) -> tuple[int, int]:
    """Classes, and bytes of a point's inputs; 0 of a workload without classes, in which nothing is suspected."""
    if not has_classes(workload):
        return 0, 0
    one = Batches(points, collate_of(workload)).take(torch.zeros(1, dtype=torch.int64))
    with torch.no_grad():
        logits = workload.logits(seeded_model(workload, 0), one)
    return logits.shape[1], inputs_of(workload, one).numel() * FLOAT


def _score_plan(config: Config, points: Sample, steps: int, horizon: float, folder: Path) -> ScorePlan:
    saved = tuple(folder / "model-1" / f"step-{step:06d}" for step in save_points(config.training, steps))
    manifest, none = manifest_of("train", points), folder / "removed.parquet"
    kind = manifest.table.schema.field("point_id").type
    pq.write_table(pa.table({"point_id": pa.array([], type=kind)}), none)
    scores = folder / "scores"
    scores.mkdir()
    return ScorePlan(
        config=config,
        logs=folder / "logs",
        train_digest=digest(manifest),
        cycle=0,
        checkpoints=saved,
        removed=none,
        folder=scores,
        checkpoint_digest=checkpoints.verify(saved[-1]).digest,
        inputs_digest="trial",
        horizon=horizon,
        sample=len(points),
    )


def _launch(program: str, plan: Plan, ranks: int, show: Callable[[Progress], None]) -> Launched:
    settings, started = plan.config.launch, time.monotonic()
    path = write_plan(plan, plan.logs / f"{program}.json")
    run_ranks(Launch(program, path, ranks, plan.logs, settings.heartbeat_seconds, settings.launcher), show)
    wall = time.monotonic() - started
    reports = [plan.logs / f"{program}-rank{rank}.json" for rank in range(ranks)]
    spent = Spent.read(reports)
    return Launched(max(0.0, wall - sum(spent.seconds.values())), spent, read_json(reports[0]))
