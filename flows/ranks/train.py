"""The program each training rank runs: the jobs of a plan one after the other, each on all ranks.

The order of the points depends on the seed and their number alone, and every rank takes its slice of each batch, so the
number of ranks changes nothing but the rounding of sums. A job whose last checkpoint is there is not run again; one
that was interrupted goes on from its last state.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from flows.dataset import check_unchanged
from flows.plans import GIVEN, HOLDOUT, QUERIES, STATE, STOPPED, Job, TrainPlan, read_plan
from flows.ranks.dropping import Dropping, NoDropping
from flows.ranks.engine import OPTIMIZER, Engine, connect
from flows.ranks.heads import HeadReader
from flows.ranks.holdout import Holdout
from flows.ranks.order import Order
from flows.ranks.outcome import Outcome
from flows.ranks.points import Points
from flows.ranks.precision import in_precision
from flows.ranks.randomness import seed_all
from flows.ranks.rank import Rank, rank_process
from flows.ranks.resume import Resume
from flows.ranks.stopping import Never, Stopping
from flows.ranks.weights import load_file, load_weights, weights_of
from flows.recipe import learning_rate, resume_points
from flows.relabeling import read_labels
from flows.workload import Workload, check_losses, load_workload, seeded_model
from influence import Block, head
from influence.turnover import TurnOver
from storage import checkpoints, drop_store, trajectory_store
from storage.files import atomic_write_json, sha256_json


class Trainer:
    """Trains and judges the jobs of one plan."""

    def __init__(self, plan: TrainPlan, rank: Rank) -> None:
        self._config, self._jobs, self._rank = plan.config, plan.jobs, rank
        self._workload: Workload = load_workload(plan.config)
        dataset = self._workload.points()
        points = Points("train", dataset, self._workload, device=rank.device)
        check_unchanged(points.manifest, plan.train_digest)
        self._points = points
        self._ids = dataset.ids
        self._keys = torch.empty_like(points.keys).scatter_(0, points.rows, points.keys)  # by row
        self._holdout = Holdout(self._workload, rank)
        self._on_queries = Outcome("query", self._workload.queries(), self._workload, rank)
        self._steps = sum(job.steps for job in plan.jobs)
        self._done, self._resumed = 0, False

    def run(self) -> None:
        """Train each job's model, or load it, and judge it on the holdout set."""
        for job in self._jobs:
            self._run(job)
        self._rank.report(found=self._resumed)

    def _run(self, job: Job) -> None:
        if self._rank.index == 0:
            checkpoints.sweep(job.folder)
            checkpoints.sweep(job.folder / STATE)
        dist.barrier()
        model = seeded_model(self._workload, job.seed).to(self._rank.device)
        if job.weights is not None:
            load_weights(model, job.weights)
            self._holdout.judge(in_precision(model, self._config.training.precision), job.folder / HOLDOUT)
            return
        if job.done:
            self._done, self._resumed = self._done + job.steps, True
        elif self._config.training.command:
            self._take(job, model)
        else:
            self._train(job, model)
        if self._rank.index == 0:
            checkpoints.discard(job.folder / STATE)
            shutil.rmtree(job.folder / GIVEN, ignore_errors=True)

    def _take(self, job: Job, model: torch.nn.Module) -> None:
        definition, precision = _definition(model), self._config.training.precision
        for step in job.save_at:
            load_file(model, job.folder / GIVEN / f"step-{step:06d}.safetensors")
            weights = weights_of(model)
            if step == job.steps:
                self._judge(job, in_precision(model, precision))
            self._save(weights, job, step, definition)
        self._done += job.steps

    def _train(self, job: Job, model: torch.nn.Module) -> None:
        training, definition = self._config.training, _definition(model)
        phase, meter = f"training {job.role}, seed {job.seed}", self._rank.meter
        meter.enter(f"making the engine of {job.role}, seed {job.seed}")
        last = head(model) if training.prune_while_learning else None  # before its layers are wrapped
        resume = Resume(job, training.zero_stage, definition, self._rank)
        seed_all(job.seed * self._rank.world + self._rank.index)  # dropout: the job's own, apart on every rank
        engine = Engine(model, training, self._rank.world, universal=resume.universal)
        masks = TurnOver(model, training.turn_over, job.seed)
        begun = resume.load(engine)
        points = self._seen(job)
        dropping = self._dropping(job, last, engine.model, points, resume.dropped)
        order = Order(points.rows[points.in_train], training.batch_size, job.seed, dropping.by_step)
        order.skip(begun)
        stopping = self._stopping(job, resume.losses)
        states, started, before = resume_points(training, job), time.process_time(), self._done
        self._resumed |= begun > 0
        for step in range(begun + 1, job.steps + 1):
            meter.enter(phase)
            engine.set_rate(learning_rate(training, step, job.planned))
            for rows in order.next()[self._rank.index :: self._rank.world].chunk(training.accumulation):
                with masks.own(self._keys[rows]):
                    losses = self._workload.loss(engine.model, points.in_force.take(rows))  # [b]
                    check_losses(losses.detach().cpu(), rows, self._ids)
                    engine.step(losses)
            if stopped := stopping.after(step, engine.model):
                self._stop(job, step, stopping.losses)
            if stopped or step == job.steps:
                spent = self._rank.world * (time.process_time() - started)  # ranks do alike
                self._leave(job, engine, step, spent / (step - begun), dropping)
            if stopped or step in job.save_at:
                self._save(engine.weights(), job, step, definition)
            if stopped:
                break
            if step < job.steps:
                dropping.after(order)
            if step in states:
                resume.save(engine, step, stopping.losses, dropping.dropped)
            self._rank.progress(phase, before + step, self._steps)
        self._done = before + job.steps
        engine.close()

    def _stopping(self, job: Job, losses: list[float]) -> Stopping | Never:
        config = self._config.training.early_stopping
        if config is None or not job.stops:
            return Never()
        return Stopping(config, job.planned, self._on_queries, losses)

    def _seen(self, job: Job) -> Points:
        """The train set as a job's model sees it."""
        removed = [] if job.removed is None else pq.read_table(job.removed)["point_id"].to_pylist()
        return self._points.seen(frozenset(removed), read_labels(job.relabeled))

    def _dropping(
        self, job: Job, last: Block | None, model: torch.nn.Module, points: Points, dropped: pa.Table | None
    ) -> Dropping | NoDropping:
        if last is None:
            return NoDropping()
        reader = HeadReader(last, model, self._workload, self._rank)
        reader.check(points)
        return Dropping(self._config, job, reader, points, self._queries, dropped)

    @cached_property
    def _queries(self) -> Points:
        return Points("query", self._workload.queries(), self._workload, device=self._rank.device)

    def _stop(self, job: Job, step: int, losses: Sequence[float]) -> None:
        if self._rank.index == 0:
            job.folder.mkdir(parents=True, exist_ok=True)
            atomic_write_json(job.folder / STOPPED, {"steps": step, "query_losses": losses})

    def _leave(self, job: Job, engine: Engine, step: int, seconds: float, dropping: Dropping | NoDropping) -> None:
        """What stands beside the last checkpoint."""
        self._rank.meter.enter("judging")
        if self._rank.index == 0:
            job.folder.mkdir(parents=True, exist_ok=True)
            atomic_write_json(job.folder / "timing.json", {"cpu_seconds_per_step": seconds})
            if dropping.dropped is not None:
                drop_store.write(job.folder, dropping.dropped)
            if job.role == "baseline":
                self._record(job, step, dropping)
        engine.share_buffers()
        self._judge(job, engine.model)

    def _judge(self, job: Job, model: torch.nn.Module) -> None:
        """On the queries, which removals were foretold on, and on the holdout set."""
        self._on_queries.leave(model, job.folder / QUERIES)
        self._holdout.judge(model, job.folder / HOLDOUT)

    def _record(self, job: Job, last: int, dropping: Dropping | NoDropping) -> None:
        training, steps, points = self._config.training, range(1, last + 1), self._seen(job)
        order = Order(points.rows[points.in_train], training.batch_size, job.seed, dropping.by_step)
        taken = [order.next().int().numpy() for _ in steps]
        rates = [learning_rate(training, step, job.planned) for step in steps]
        kind = self._points.manifest.table.schema.field("point_id").type
        trajectory_store.write(job.folder, pa.array(self._ids, type=kind), taken, rates, OPTIMIZER)

    def _save(self, weights: Mapping[str, NDArray[Any]], job: Job, step: int, definition: str) -> None:
        self._rank.meter.enter("saving parameters")
        if self._rank.index == 0 and not (job.folder / f"step-{step:06d}").exists():
            draft = checkpoints.begin(job.folder, step)
            checkpoints.write_tensors(draft, weights)
            checkpoints.commit(draft, checkpoints.Metadata(job.role, job.seed, step, definition, self._rank.world))
        dist.barrier()


def _definition(model: torch.nn.Module) -> str:
    """Digest of the names and shapes of a model's parameters and buffers, as they are saved."""
    return sha256_json({name: ["float32", *value.shape] for name, value in model.state_dict().items()})


def main() -> None:
    """Run the plan named on the command line."""
    plan = read_plan(TrainPlan, Path(sys.argv[1]))
    with rank_process("train", plan.logs, plan.config.launch, connect) as rank:
        Trainer(plan, rank).run()


if __name__ == "__main__":
    main()
