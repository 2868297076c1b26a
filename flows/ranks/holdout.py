"""The outcome of a model on the holdout set: one loss and one prediction per point, gathered from the ranks.

This is the only code that reads the holdout samples after the check at the start of a cycle; the scoring program does
not import it.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from flows.dataset import manifest_of, rows_by_id
from flows.ranks.device import here
from flows.ranks.rank import Rank
from flows.workload import Batches, Workload, collate_of
from storage.files import atomic_path

BATCH = 512


class Holdout:
    """Judges models on the holdout set of a workload."""

    def __init__(self, workload: Workload, rank: Rank) -> None:
        points = workload.holdout()
        self._workload, self._rank = workload, rank
        self._manifest = manifest_of("holdout", points)
        self._rows = rows_by_id(points, self._manifest)
        self._batches = Batches(points, collate_of(workload))

    def judge(self, model: nn.Module, path: Path) -> None:
        """Write `point_id, label, group, loss, correct` for every holdout point; every rank must call this together."""
        training = model.training
        model.eval()
        outcome = torch.zeros(2, len(self._rows), dtype=torch.float64)
        with torch.no_grad():
            for start in range(0, len(self._rows), BATCH * self._rank.world):
                self._part(model, start, outcome)
        model.train(training)
        self._rank.sum(outcome)
        if self._rank.index == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            table = pa.table(
                {
                    "point_id": self._manifest.table["point_id"],
                    "label": self._manifest.table["label"],
                    "group": self._manifest.table["group"],
                    "loss": outcome[0].numpy(),
                    "correct": outcome[1].bool().numpy(),
                }
            )
            with atomic_path(path) as draft:
                pq.write_table(table, draft)

    def _part(self, model: nn.Module, start: int, outcome: torch.Tensor) -> None:
        # Every rank runs the same number of forward passes, as ZeRO 3 requires; the last rows are repeated to fill up.
        at = torch.arange(start + self._rank.index * BATCH, start + (self._rank.index + 1) * BATCH)
        mine = at[at < len(self._rows)]
        batch = here(self._batches.take(self._rows[mine if len(mine) else at[:1] * 0]))
        losses = self._workload.loss(model, batch)
        correct = self._workload.logits(model, batch).argmax(1) == self._workload.labels(batch)
        if len(mine):
            outcome[0, mine] = losses.double().cpu()
            outcome[1, mine] = correct.double().cpu()
