"""The stage `train`: this cycle's baseline, its first seed, on the whole current set."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from flows.drops import dropped_by, record_drops
from flows.elsewhere import train_elsewhere
from flows.plans import Job, TrainPlan
from flows.protection import protected_ids
from flows.recipe import save_points, steps_for
from flows.relabeling import write_labels
from flows.spent import Spent
from flows.stages import Cycle, once
from storage import checkpoints
from storage.files import JSON, atomic_path, read_json, sha256_file, sha256_json
from storage.points import Manifest, PointId

BOUNDS = {
    "cumulative_budget",
    "class_budget",
    "group_budget",
    "minimum_kept",
    "class_minimum_kept",
    "protected_groups",
}
"""Keys of [pruning] that bound what a training may drop while it learns, beside the protected ids."""


@dataclass(frozen=True)
class Trained:
    """The baseline.

    Attributes:
        checkpoints: From the earliest to the last, the model.
        digest: Of the last.
        steps: Optimizer steps of every arm of this cycle.
        cpu_seconds_per_step: Of all ranks in the training, without their start.
        spent: What the ranks spent.
        dropped: Points that it dropped while learning.
    """

    checkpoints: tuple[Path, ...]
    digest: str
    steps: int
    cpu_seconds_per_step: float
    spent: Spent | None = None
    dropped: int = 0


def train(cycle: Cycle) -> Trained:
    """Train the baseline with its first seed."""
    return once(
        cycle, "train", Trained, training_inputs(cycle), lambda: _train(cycle), decided=cycle.applied, intact=_intact
    )


def _intact(trained: Trained) -> bool:
    return all(path.exists() for path in trained.checkpoints)


def train_jobs(cycle: Cycle, jobs: tuple[Job, ...], logs: Path) -> Spent:
    """Have the ranks train the models, or take them from the team's own command, and judge them."""
    config = cycle.config
    if config.training.command:
        for job in jobs:
            if job.weights is None:
                train_elsewhere(cycle, job)
    plan = TrainPlan(config=config, logs=logs, train_digest=cycle.digests["train"], jobs=jobs)
    logs = cycle.launch("train", plan, config.training.ranks)
    spent = Spent.read(logs / f"train-rank{rank}.json" for rank in range(config.training.ranks))
    return replace(spent, anew=False) if config.training.command else spent


def training_inputs(cycle: Cycle) -> dict[str, JSON]:
    """What every trained model of the cycle depends on."""
    training = cycle.config.training
    drops = training.prune_while_learning
    beside = [cycle.config.file.parent / part for part in training.command]
    return cycle.section("workload") | {
        "training": training.recipe(),
        "command": {path.name: sha256_file(path) for path in beside if path.is_file()},
        "query": cycle.digests["query"],
        "spared": _spared(cycle) if drops else None,
        "dataset": cycle.dataset_sha256,
        "holdout": cycle.digests["holdout"],
        "code": cycle.digests["code"],
    }


def _spared(cycle: Cycle) -> dict[str, JSON]:
    pruning = cycle.config.pruning
    bounds: dict[str, JSON] = pruning.model_dump(mode="json", include=BOUNDS)
    return bounds | {"protected": sorted(map(str, protected_ids(pruning, cycle.manifest.id_kind)))}


def _train(cycle: Cycle) -> Trained:
    training = cycle.config.training
    steps = planned_steps(cycle)
    removed = write_ids(cycle.folder / "plans" / "removed.parquet", cycle.removed, cycle.manifest)
    relabeled = write_labels(cycle.folder / "plans" / "relabeled.parquet", cycle.relabeled, cycle.manifest)
    job = Job(
        role="baseline",
        seed=training.seed,
        steps=steps,
        planned=steps,
        stops=training.early_stopping is not None,
        removed=removed,
        relabeled=relabeled,
        folder=arm_folder(cycle, "baseline", training.seed, training_inputs(cycle)),
        save_at=save_points(training, steps),
    )
    spent = train_jobs(cycle, (job,), cycle.folder / "logs")
    record_drops(cycle, (job,))
    steps = job.ended
    digest = checkpoints.verify(job.last).digest
    cycle.ledger.record_event(cycle.number, "trained", detail={"checkpoint": digest, "steps": steps}, key=digest)
    seconds = read_json(job.folder / "timing.json")["cpu_seconds_per_step"]
    return Trained(job.saved, digest, steps, seconds, spent, dropped_by(job))


def planned_steps(cycle: Cycle) -> int:
    """Optimizer steps of every arm, unless the baseline is stopped early."""
    return steps_for(cycle.config.training, len(cycle.manifest) - len(cycle.removed))


def arm_folder(cycle: Cycle, role: str, seed: int, inputs: Mapping[str, JSON]) -> Path:
    """Where one model of an arm is kept: named by what it depends on, so that a finished one is never trained again."""
    return cycle.folder / "checkpoints" / f"{role}-seed{seed}-{sha256_json(inputs)[:8]}"


def write_ids(path: Path, ids: Collection[PointId], manifest: Manifest) -> Path:
    """Write ids as a Parquet file of the manifest's id type."""
    kind = manifest.table.schema.field("point_id").type
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as draft:
        pq.write_table(pa.table({"point_id": pa.array(sorted(ids), type=kind)}), draft)
    return path
