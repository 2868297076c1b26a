"""The program that carries a proposal out on a checkpoint without training, and asks the query set what that does.

Two ways: the influence step, from the curvature that the scoring fitted and kept (fitted again where it is gone), and
the step of IAU. Points are dealt to the ranks as in the scoring. The holdout set is not read here. The first of the
proposed points are also told where in their texts their influence lies (flows/ranks/positions.py).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from flows.asking import at_a_time
from flows.dataset import check_unchanged
from flows.foreseen import INFLUENCE, UNLEARNING, column
from flows.plans import PreviewPlan, read_plan
from flows.ranks.attribution import Attribution, Setting
from flows.ranks.blocks import measure_energies
from flows.ranks.kept import Kept
from flows.ranks.outcome import Outcome, hits
from flows.ranks.points import Points
from flows.ranks.positions import blocks_in, has_positions, tell_positions
from flows.ranks.precision import in_precision
from flows.ranks.rank import Rank, rank_process
from flows.ranks.weights import load_weights
from flows.relabeling import Source, read_labels
from flows.workload import load_workload
from influence import influence_step, move, unlearning_step
from influence.factored import Gradients
from storage import score_store
from storage.files import atomic_path
from storage.points import PointId

BATCH = 256


class Previewing:
    """The preview of one proposal on one rank."""

    def __init__(self, plan: PreviewPlan, rank: Rank) -> None:
        self._plan, self._rank = plan, rank
        self._workload = load_workload(plan.config)
        removed, gone = _ids(plan.removed), _ids(plan.then_removed)
        now, then = read_labels(plan.relabeled), read_labels(plan.then_relabeled)
        self._points = Points("train", self._workload.points(), self._workload, removed, now, rank.device)
        check_unchanged(self._points.manifest, plan.train_digest)
        ids, inside = self._points.ids, self._points.in_train
        self._now, self._then = self._points.with_labels(now), self._points.with_labels(then)
        changed = torch.tensor([now.get(point) != then.get(point) for point in ids])
        self._stay = torch.tensor([point not in gone for point in ids])
        self._go, self._come = inside & (~self._stay | changed), self._stay & (~inside | changed)

    def run(self) -> None:
        """Write what the query set makes of the model, and of it after each step."""
        queries = Outcome("query", self._workload.queries(), self._workload, self._rank)
        table = queries.manifest.table.select(["point_id", "label"])
        for method, step in {"": dict[str, Tensor](), **self._steps()}.items():
            self._rank.progress("asking the queries", 0, 1)
            model = self._model()
            move(blocks_in(model, step), step)
            loss, correct = queries.of(model)
            table = table.append_column(column("loss", method), pa.array(loss.numpy()))
            table = table.append_column(column("correct", method), hits(correct))
        if self._rank.index == 0:
            self._tell_positions()
            _write(table, self._plan.file)
        self._rank.report(found=False)

    def _tell_positions(self) -> None:
        plan = self._plan
        if plan.positions is None or plan.positions.exists() or not has_positions(plan.config, self._workload):
            return
        table = tell_positions(plan, self._workload, self._points, self._now, self._rank)
        if table is not None:
            _write(table, plan.positions)

    def _model(self) -> nn.Module:
        model = self._workload.model().to(self._rank.device)
        load_weights(model, self._plan.checkpoint)
        return model

    def _steps(self) -> dict[str, Gradients]:
        """What the parameters move by, by method and block; every rank calls this together."""
        plan, steps = self._plan, dict[str, Gradients]()
        energies = measure_energies(self._model(), self._workload, self._points, self._rank)
        setting = Setting(plan.config, energies, plan.horizon, 1, plan.scores.parent)
        model = in_precision(self._model(), plan.config.scoring.precision)
        with Attribution(model, self._workload, setting, self._points, self._rank) as attribution:
            keep = Kept(score_store.parts(plan.scores, plan.inputs_digest))
            attribution.fit(f"curvature, {plan.checkpoint.name}", keep, plan.checkpoint_digest)
            go, come = self._total(attribution, self._go, self._now), self._total(attribution, self._come, self._then)
            n = int(self._points.in_train.sum())
            change = {name: go[name] - come[name] for name in go}
            steps[INFLUENCE] = influence_step(attribution.curvature, change, n)
            if bool(self._go.any()) and bool(self._stay.any()):
                stay = self._total(attribution, self._stay, self._then)
                steps[UNLEARNING] = unlearning_step(_mean(stay, self._stay), _mean(go, self._go))
            return {method: attribution.joined(step) for method, step in steps.items()}

    def _total(self, attribution: Attribution, chosen: Tensor, source: Source) -> Gradients:
        """Summed loss gradients of some points, `[n]` bool, over all ranks."""
        places = chosen.nonzero()[:, 0]
        parts = places.split(at_a_time(self._workload, BATCH)) if len(places) else ()

        def batches() -> Iterator[tuple[Any, Tensor]]:
            mine = attribution.reads(len(parts))
            for done, part in enumerate(mine):
                self._rank.progress("summing gradients", done, len(mine))
                yield source.take(self._points.rows[parts[part]]), torch.ones(len(parts[part]))

        return attribution.total(batches())


def _ids(path: Path) -> frozenset[PointId]:
    return frozenset(pq.read_table(path)["point_id"].to_pylist())


def _write(table: pa.Table, file: Path) -> None:
    with atomic_path(file) as draft:
        pq.write_table(table, draft)


def _mean(total: Gradients, points: Tensor) -> Gradients:
    """By block, [o, i]."""
    return {name: one[0] / int(points.sum()) for name, one in total.items()}


def main() -> None:
    """Run the plan named on the command line."""
    plan = read_plan(PreviewPlan, Path(sys.argv[1]))
    with rank_process("preview", plan.logs, plan.config.launch) as rank:
        torch.set_num_threads(1)
        Previewing(plan, rank).run()


if __name__ == "__main__":
    main()
