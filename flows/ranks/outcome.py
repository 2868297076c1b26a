"""What a model makes of a set of points: one loss and, of classes, one prediction each, gathered from the ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from flows.asking import at_a_time, has_classes
from flows.dataset import manifest_of, rows_by_id
from flows.ranks.device import moved
from flows.ranks.evaluation import evaluating
from flows.ranks.rank import Rank
from flows.workload import Batches, PointSet, Workload, collate_of
from storage.files import atomic_path

BATCH = 512


class Outcome:
    """Of models on one set.

    Args:
        name: Of the set.
        points: Its points.
        workload: Loss and logits.
        rank: This process.
    """

    def __init__(self, name: str, points: PointSet, workload: Workload, rank: Rank) -> None:
        self._workload, self._rank = workload, rank
        self.manifest = manifest_of(name, points)
        self._rows = rows_by_id(points, self.manifest)
        self._batches = Batches(points, collate_of(workload))
        self._batch = at_a_time(workload, BATCH)

    def of(self, model: nn.Module) -> Tensor:
        """Loss, and whether the prediction is right, by manifest: `[2, n]`, float64; all ranks call this together.

        Without classes nothing is right or wrong: NaN.
        """
        outcome = torch.zeros(2, len(self._rows), dtype=torch.float64)
        with evaluating(model):
            for start in range(0, len(self._rows), self._batch * self._rank.world):
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
        # Every rank runs the same number of forward passes, as ZeRO 3 requires; the last rows are repeated to fill up.
        first = start + self._rank.index * self._batch
        at = torch.arange(first, first + self._batch)
        mine = at[at < len(self._rows)]
        batch = moved(self._batches.take(self._rows[mine if len(mine) else at[:1] * 0]), self._rank.device)
        losses = self._workload.loss(model, batch)
        correct = self._correct(model, batch)
        if len(mine):
            outcome[0, mine] = losses.double().cpu()
            outcome[1, mine] = correct

    def _correct(self, model: nn.Module, batch: Any) -> Tensor:
        if not has_classes(self._workload):
            return torch.tensor(torch.nan, dtype=torch.float64)
        right = self._workload.logits(model, batch).argmax(1) == self._workload.labels(batch)
        return right.double().cpu()


def hits(correct: Tensor) -> pa.Array:
    """Whether each prediction is right, null where there is none."""
    return pa.array(correct.bool().numpy(), mask=correct.isnan().numpy())
