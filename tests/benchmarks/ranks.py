"""Scoring on more ranks, and of more points: real launches of the scoring program on the Fashion-MNIST CNN.

    python -m tests.benchmarks.ranks ranks|points OUT

Seconds are of the slowest rank, from when it has read the data to its end, on one thread a rank; for the ranks those of
the clock, so that the machine must be idle otherwise, for the points those of the processor. The share of the fold
models, which a recipe makes as long as it likes, is kept small: one epoch, two folds, one repeat.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from flows.agents import Launch
from flows.config import Config, load
from flows.dataset import read_sets
from flows.launch import run_ranks
from flows.plans import Job, ScorePlan, TrainPlan, write_plan
from flows.training import write_ids
from flows.workload import load_workload
from storage.files import read_json
from tests.benchmarks.rows import Row, write
from tests.flows.helpers import write_toml

QUERIES, STEPS = 500, 300
SHARED, SIZES = 20_000, (10_000, 60_000)


def main() -> None:
    """Measure, and keep the row."""
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        row = {"ranks": _ranks, "points": _points}[sys.argv[1]](root, _trained(root))
    write(Path(sys.argv[2]), [row])


def _ranks(root: Path, checkpoint: Path) -> Row:
    alone, shared = (_seconds(root, checkpoint, SHARED, ranks) for ranks in (1, 2))
    on = f"CNN {SHARED:,} x {QUERIES}, EK-FAC and exact head"
    return Row("scoring on 2 ranks", on, shared / alone, "x 1 rank", 1 / 1.7, f"{shared:.0f} s, {alone:.0f} s")


def _points(root: Path, checkpoint: Path) -> Row:
    few, many = (_seconds(root, checkpoint, points, 1, "cpu_seconds") / points for points in SIZES)
    said = f"{1000 * many:.3g} ms, {1000 * few:.3g} ms of the processor"
    return Row("a point among 60,000", f"CNN, {QUERIES} queries, 1 rank", many / few, "x one of 10,000", 1.1, said)


def _config(root: Path, points: int, ranks: int) -> Config:
    # as many queries for every number of points: those of 60,000 are what is left of the test images
    options = {"model": "cnn", "points": points, "queries": QUERIES, "holdout": 1000}
    training = {"epochs": 1, "batch_size": 64, "ranks": 1, "weight_decay": 0.01}
    scoring = {"chunk": 250, "ranks": ranks, "probe": 0, "folds": 2, "repeats": 1}
    name = f"{points}-{ranks}"
    return load(write_toml(root / name, "fashion_mnist", options, training=training, scoring=scoring))


def _trained(root: Path) -> Path:
    config, folder = _config(root, SIZES[0], 1), root / "model"
    job = Job(role="baseline", seed=0, steps=STEPS, planned=STEPS, folder=folder, save_at=(STEPS,))
    digest = read_sets(load_workload(config)).digests["train"]
    _launch("train", TrainPlan(config=config, logs=root / "logs", train_digest=digest, jobs=(job,)), 1)
    return job.last


def _seconds(root: Path, checkpoint: Path, points: int, ranks: int, of: str = "seconds") -> float:
    config = _config(root, points, ranks)
    here, sets = config.file.parent, read_sets(load_workload(config))
    plan = ScorePlan(
        config=config,
        logs=here / "logs",
        train_digest=sets.digests["train"],
        cycle=1,
        checkpoints=(checkpoint,),
        removed=write_ids(here / "removed.parquet", [], sets.train),
        folder=here / "scores",
        checkpoint_digest="model",
        inputs_digest="inputs",
        horizon=STEPS * config.training.learning_rate,
    )
    _launch("score", plan, ranks)
    spent = [read_json(plan.logs / f"score-rank{rank}.json")[of] for rank in range(ranks)]
    return max(sum(seconds.values()) - seconds["start"] for seconds in spent)


def _launch(program: str, plan: TrainPlan | ScorePlan, ranks: int) -> None:
    path = write_plan(plan, plan.logs / f"{program}.json")
    run_ranks(Launch(program, path, ranks, plan.logs, heartbeat_seconds=3600), lambda _: None)


if __name__ == "__main__":
    main()
