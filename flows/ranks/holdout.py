"""The outcome of a model on the holdout set.

This is the only code that reads the holdout samples after the check at the start of a cycle; the scoring program does
not import it.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from torch import nn

from flows.ranks.outcome import Outcome
from flows.ranks.rank import Rank
from flows.workload import Workload
from storage.files import atomic_path


class Holdout:
    """Judges models on the holdout set of a workload."""

    def __init__(self, workload: Workload, rank: Rank) -> None:
        self._outcome, self._rank = Outcome("holdout", workload.holdout(), workload, rank), rank

    def judge(self, model: nn.Module, path: Path) -> None:
        """Write `point_id, label, group, loss, correct` for every holdout point; every rank must call this together."""
        loss, correct = self._outcome.of(model)
        if self._rank.index == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            known = self._outcome.manifest.table.select(["point_id", "label", "group"])
            table = known.append_column("loss", pa.array(loss.numpy()))
            with atomic_path(path) as draft:
                pq.write_table(table.append_column("correct", pa.array(correct.bool().numpy())), draft)
