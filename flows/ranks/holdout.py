"""The outcome of a model on the holdout set.

This is the only code that reads the holdout samples after the check at the start of a cycle; the scoring program does
not import it.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from flows.ranks.outcome import Outcome
from flows.ranks.rank import Rank
from flows.workload import Workload


class Holdout:
    """Judges models on the holdout set of a workload."""

    def __init__(self, workload: Workload, rank: Rank) -> None:
        self._outcome = Outcome("holdout", workload.holdout(), workload, rank)

    def judge(self, model: nn.Module, path: Path) -> None:
        """Write what a model makes of every holdout point; every rank must call this together."""
        self._outcome.leave(model, path)
