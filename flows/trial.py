"""A short trial: the rank programs themselves, on the ranks that are configured, for a few steps and a few points.

Nothing is measured in another way than in a cycle, so whatever makes a machine slow makes the trial slow, too.
"""

from __future__ import annotations

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
from flows.config import Config
from flows.dataset import digest, manifest_of
from flows.launch import Progress, run_ranks
from flows.plans import HOLDOUT, Job, Plan, ScorePlan, TrainPlan, write_plan
from flows.recipe import horizon, resume_points, save_points, steps_for
from flows.spent import Spent
from flows.workload import Batches, Sample, Workload, collate_of, inputs_of
from storage import checkpoints
from storage.files import read_json, size_of
from storage.trajectory_store import TRAJECTORY

STEPS = 24
"""Of each of the two models that are trained; the first bears what only a first one does."""
CHUNKS = 2
"""That each rank scores."""
PARTS = ("fold", "chunk", "curvature")


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
        saved: Checkpoints of both.
        states: Of both.
        checkpoint_bytes: Of one.
        outcome_bytes: Of what a model makes of the holdout set.
        record_bytes: Of what a baseline leaves of each step.
    """

    launched: Launched
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
        models: Checkpoints that were scored.
        shard_bytes: Of all their rows.
        parts_bytes: Of what was kept on the way, by what it is of: `fold`, `chunk`, `curvature`.
        input_bytes: Of a point, as nearest neighbours are measured on it.
    """

    launched: Launched
    points: int
    models: int
    shard_bytes: int
    parts_bytes: Mapping[str, int]
    input_bytes: int


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
        trained = _train(_short(config, 1.0), digest(manifest_of("train", points)), folder, show)
        count = min(len(points), CHUNKS * config.scoring.ranks * config.scoring.chunk)
        short = _short(config, count / len(points))
        steps = steps_for(config.training, len(points))
        scored = _score(short, workload, Sample(points, count), horizon(config.training, steps, steps), folder, show)
        return Trial(trained, scored, len(points))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _short(config: Config, share: float) -> Config:
    """One epoch by our own trainer, and room in the cache for as large a share of the points as in a cycle."""
    training = config.training.model_copy(update={"epochs": 1, "command": (), "early_stopping": None})
    cache = config.scoring.factor_cache
    less = {"memory": round(cache.memory * share), "disk": round(cache.disk * share)}
    scoring = config.scoring.model_copy(update={"factor_cache": cache.model_copy(update=less)})
    return config.model_copy(update={"training": training, "scoring": scoring})


def _train(config: Config, train_digest: str, folder: Path, show: Callable[[Progress], None]) -> TrainTrial:
    save_at = save_points(config.training, STEPS)
    jobs = tuple(
        Job(role="baseline", seed=seed, steps=STEPS, planned=STEPS, folder=folder / f"model-{seed}", save_at=save_at)
        for seed in range(2)
    )
    plan = TrainPlan(config=config, logs=folder / "logs", train_digest=train_digest, jobs=jobs)
    launched = _launch("train", plan, config.training.ranks, show)
    return TrainTrial(
        launched=launched,
        saved=2 * len(save_at),
        states=2 * len(resume_points(config.training, jobs[0])),
        checkpoint_bytes=size_of(jobs[1].last),
        outcome_bytes=size_of(jobs[1].folder / HOLDOUT),
        record_bytes=size_of(jobs[1].folder / TRAJECTORY) / STEPS,
    )


def _score(
    config: Config,
    workload: Workload,
    points: Sample,
    horizon: float,
    folder: Path,
    show: Callable[[Progress], None],
) -> ScoreTrial:
    saved = tuple(folder / "model-1" / f"step-{step:06d}" for step in save_points(config.training, STEPS))
    manifest = manifest_of("train", points)
    none = folder / "removed.parquet"
    kind = manifest.table.schema.field("point_id").type
    pq.write_table(pa.table({"point_id": pa.array([], type=kind)}), none)
    plan = ScorePlan(
        config=config,
        logs=folder / "logs",
        train_digest=digest(manifest),
        cycle=0,
        checkpoints=saved,
        removed=none,
        folder=folder / "scores",
        checkpoint_digest=checkpoints.verify(saved[-1]).digest,
        inputs_digest="trial",
        horizon=horizon,
        sample=len(points),
    )
    plan.folder.mkdir()
    launched = _launch("score", plan, config.scoring.ranks, show)
    one = Batches(points, collate_of(workload)).take(torch.zeros(1, dtype=torch.int64))
    return ScoreTrial(
        launched=launched,
        points=len(points),
        models=len(saved),
        shard_bytes=sum(path.stat().st_size for path in plan.folder.glob("*.parquet")),
        parts_bytes={kind: sum(map(size_of, plan.folder.glob(f"unfinished/*/{kind}*"))) for kind in PARTS},
        input_bytes=inputs_of(workload, one).nbytes,
    )


def _launch(program: str, plan: Plan, ranks: int, show: Callable[[Progress], None]) -> Launched:
    settings, started = plan.config.launch, time.monotonic()
    path = write_plan(plan, plan.logs / f"{program}.json")
    run_ranks(Launch(program, path, ranks, plan.logs, settings.heartbeat_seconds, settings.launcher), show)
    wall = time.monotonic() - started
    reports = [plan.logs / f"{program}-rank{rank}.json" for rank in range(ranks)]
    spent = Spent.read(reports)
    return Launched(max(0.0, wall - sum(spent.seconds.values())), spent, read_json(reports[0]))
