"""What a model makes of a set of points: one loss and, of classes, one prediction each, gathered from the ranks."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from flows.asking import at_a_time, has_classes, lengths_of, task_of
from flows.dataset import manifest_of, rows_by_id
from flows.ranks.device import moved
from flows.ranks.evaluation import evaluating
from flows.ranks.rank import Rank
from flows.workload import Batches, PointSet, Workload, collate_of
from influence.tokens import point_losses
from storage.files import atomic_path

BATCH = 512
TEXTS = 64
"""Where a batch is as wide as its longest point: wider ones leave the processor's caches."""


class Outcome:
    """Of models on one set.

    Args:
        name: Of the set.
        points: Its points.
        workload: Loss and logits.
        rank: This process.
    """

    def __init__(self, name: str, points: PointSet, workload: Workload, rank: Rank) -> None:
        self._name, self._workload, self._rank, self._task = name, workload, rank, task_of(workload)
        self.manifest = manifest_of(name, points)
        self._rows = rows_by_id(points, self.manifest)
        self._batches = Batches(points, collate_of(workload))
        lengths = lengths_of(points)
        self._batch = at_a_time(workload, BATCH if lengths is None else TEXTS)
        self._places = torch.arange(len(self._rows))
        if lengths is not None:  # alike ones together, the longest first: what does not fit fails at once
            self._places = torch.tensor(lengths)[self._rows].argsort(stable=True, descending=True)

    def of(self, model: nn.Module) -> Tensor:
        """Loss, and whether the prediction is right, by manifest: `[2, n]`, float64; all ranks call this together.

        Without classes nothing is right or wrong: NaN.
        """
        outcome = torch.zeros(2, len(self._rows), dtype=torch.float64)
        step = self._batch * self._rank.world
        with evaluating(model):
            for start in range(0, len(self._rows), step):
                if len(self._rows) > step:
                    self._rank.progress(f"asking, {self._name} set", start, len(self._rows))
                self._part(model, start, outcome)
        self._rank.sum(outcome)
        return outcome

    def leave(self, model: nn.Module, path: Path) -> None:
        """Write `point_id, label, group, loss, correct` for every point; all ranks call this together."""
        loss, correct = self.of(model)
        if self._rank.index == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            known = self.manifest.table.select(["point_id", "label", "group"])
            table = known.append_column("loss", pa.array(loss.numpy()))
            with atomic_path(path) as draft:
                pq.write_table(table.append_column("correct", hits(correct)), draft)

    def _part(self, model: nn.Module, start: int, outcome: Tensor) -> None:
        # Every rank runs the same number of forward passes, as ZeRO 3 requires; a point is repeated where none is left.
        first = start + self._rank.index * self._batch
        mine = self._places[first : first + self._batch]
        batch = moved(self._batches.take(self._rows[mine if len(mine) else self._places[-1:]]), self._rank.device)
        logits, labels = self._task.logits(model, batch), self._task.labels(batch)
        if len(mine):  # the loss is their cross-entropy, which `check` and scoring hold the workload to
            outcome[0, mine] = point_losses(logits, labels).double().cpu()
            outcome[1, mine] = (logits.argmax(1) == labels).double().cpu() if has_classes(self._workload) else torch.nan


def hits(correct: Tensor) -> pa.Array:
    """Whether each prediction is right, null where there is none."""
    return pa.array(correct.bool().numpy(), mask=correct.isnan().numpy())
