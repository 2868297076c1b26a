"""The program each training rank runs: the jobs of a plan one after the other, each on all ranks.

The order of the points depends on the seed and their number alone, and every rank takes its slice of each batch, so the
number of ranks changes nothing but the rounding of sums. A job whose last checkpoint is there is not run again.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from flows.dataset import check_unchanged
from flows.plans import Job, TrainPlan, read_plan
from flows.ranks.engine import Engine, connect
from flows.ranks.holdout import Holdout
from flows.ranks.order import Order
from flows.ranks.points import Points
from flows.ranks.rank import Rank, rank_process
from flows.ranks.weights import load_weights
from flows.workload import Workload, check_losses, load_workload, seeded_model
from influence.turnover import TurnOver
from storage import checkpoints, trajectory_store
from storage.files import atomic_write_json, sha256_json


class Trainer:
    """Trains and judges the jobs of one plan."""

    def __init__(self, plan: TrainPlan, rank: Rank) -> None:
        self._config, self._rank = plan.config, rank
        self._workload: Workload = load_workload(plan.config)
        dataset = self._workload.points()
        points = Points("train", dataset, self._workload)
        check_unchanged(points.manifest, plan.train_digest)
        self._manifest, self._rows, self._batches = points.manifest, points.rows, points.batches
        self._ids = dataset.ids
        self._keys = torch.empty_like(points.keys).scatter_(0, points.rows, points.keys)  # by row
        self._holdout = Holdout(self._workload, rank)
        self._steps = sum(job.steps for job in plan.jobs)
        self._done = 0

    def run(self, job: Job) -> None:
        """Train the job's model, or load it, and judge it on the holdout set."""
        model = seeded_model(self._workload, job.seed)
        if job.weights is not None:
            load_weights(model, job.weights)
            self._holdout.judge(model, job.folder / "holdout.parquet")
            return
        if not (job.folder / f"step-{job.steps:06d}").exists():
            self._train(job, model)
        else:
            self._done += job.steps

    def _train(self, job: Job, model: torch.nn.Module) -> None:
        torch.manual_seed(job.seed * self._rank.world + self._rank.index)  # dropout: the job's own, apart on every rank
        engine = Engine(model, self._config.training, self._rank.world)
        masks = TurnOver(model, self._config.training.turn_over, job.seed)
        order = Order(self._kept(job.removed), self._config.training.batch_size, job.seed)
        taken, rates = [], []
        started = time.monotonic()
        for step in range(1, job.steps + 1):
            batch = order.next()
            if self._recorded(job):
                taken.append(batch.int().numpy())
                rates.append(engine.learning_rate)
            rows = batch[self._rank.index :: self._rank.world]
            with masks.own(self._keys[rows]):
                losses = self._workload.loss(engine.model, self._batches.take(rows))  # [B / world]
                check_losses(losses, rows, self._ids)
                engine.step(losses)
            if step == job.steps:
                self._time(job, time.monotonic() - started)
                self._record(job, taken, rates)
                engine.share_buffers()
                self._holdout.judge(engine.model, job.folder / "holdout.parquet")
            if step in job.save_at:
                self._save(engine, job, step)
            self._done += 1
            self._rank.progress(f"training {job.role}, seed {job.seed}", self._done, self._steps)
        engine.close()

    def _kept(self, removed: Path | None) -> torch.Tensor:
        gone = set() if removed is None else set(pq.read_table(removed)["point_id"].to_pylist())
        kept = [point not in gone for point in self._manifest.ids]
        return self._rows[torch.tensor(kept)]

    def _time(self, job: Job, seconds: float) -> None:
        if self._rank.index == 0:
            job.folder.mkdir(parents=True, exist_ok=True)
            atomic_write_json(job.folder / "timing.json", {"seconds_per_step": seconds / job.steps})

    def _recorded(self, job: Job) -> bool:
        """Whether this rank leaves what the job's training did."""
        return self._rank.index == 0 and job.role == "baseline"

    def _record(self, job: Job, taken: Sequence[NDArray[Any]], rates: Sequence[float]) -> None:
        if self._recorded(job):
            kind = self._manifest.table.schema.field("point_id").type
            trajectory_store.write(job.folder, pa.array(self._ids, type=kind), taken, rates)

    def _save(self, engine: Engine, job: Job, step: int) -> None:
        weights = engine.weights()
        if self._rank.index == 0 and not (job.folder / f"step-{step:06d}").exists():
            draft = checkpoints.begin(job.folder, step)
            checkpoints.write_tensors(draft, weights)
            shapes = {name: [str(value.dtype), *value.shape] for name, value in weights.items()}
            checkpoints.commit(
                draft,
                checkpoints.Metadata(job.role, job.seed, step, sha256_json(shapes), self._rank.world),
            )
        dist.barrier()


def main() -> None:
    """Run the plan named on the command line."""
    plan = read_plan(TrainPlan, Path(sys.argv[1]))
    with rank_process("train", plan.logs, connect) as rank:
        for job in plan.jobs:
            if rank.index == 0:
                checkpoints.sweep(job.folder)
        dist.barrier()
        trainer = Trainer(plan, rank)
        for job in plan.jobs:
            trainer.run(job)


if __name__ == "__main__":
    main()
