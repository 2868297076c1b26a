"""What the next training saves without the removed points, next to what finding and proving them cost.

The saving is of one training by the same recipe, so at the same number of epochs. The arms of a cycle take equal steps,
so it is computed, and nothing is saved before the next training; only where points were removed as redundant or
balanced do the arms take fewer steps, and it is measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from flows.preview import Preview
from flows.recipe import steps_for
from flows.retraining import Retrained, for_load, pruned
from flows.scoring import Scored
from flows.stages import Cycle
from flows.training import Trained
from storage.files import read_json
from storage.proposals import Proposal


@dataclass(frozen=True)
class Savings:
    """Of one training.

    Attributes:
        steps: Optimizer steps.
        cpu_seconds: Seconds of all ranks.
        measured: On the arms of this cycle, which else took equal steps.
        spent: CPU seconds of scoring, preview and proof; None where an earlier run did part of it, or it goes on.
    """

    steps: int
    cpu_seconds: float
    measured: bool
    spent: float | None

    @property
    def cycles(self) -> int | None:
        """Trainings after which it has paid for this cycle."""
        return None if self.spent is None else math.ceil(self.spent / self.cpu_seconds)

    @property
    def said(self) -> str:
        """One line."""
        how = "measured" if self.measured else "computed; the arms of this cycle took equal steps"
        saved = f"{self.steps:,} steps, {self.cpu_seconds:,.1f} CPU s at the same epochs ({how})"
        if self.spent is None:
            return saved
        cost = f"scoring, preview and proof took {self.spent:,.1f} CPU s"
        return f"{saved}; {cost}, repaid by {self.cycles:,} such trainings"


def savings(
    cycle: Cycle, trained: Trained, scored: Scored, preview: Preview, retrained: Retrained | None
) -> Savings | None:
    """What the proposal saves; None where it saves nothing."""
    proposal = Proposal.read(cycle.folder)
    training, (removed, _) = cycle.config.training, pruned(cycle, proposal)
    before, after = (steps_for(training, len(cycle.manifest) - len(gone)) for gone in (cycle.removed, removed))
    steps = trained.steps - round(trained.steps * after / before)
    seconds, measured = steps * trained.cpu_seconds_per_step, False
    if retrained is not None and "challenger" in retrained.folders and for_load(proposal):
        taken = {arm: retrained.steps[arm] * _per_step(retrained, arm) for arm in ("baseline", "challenger")}
        seconds, measured = taken["baseline"] - taken["challenger"], True
    if steps <= 0 or seconds <= 0:
        return None
    return Savings(steps, seconds, measured, _spent(scored, preview, retrained))


def _per_step(retrained: Retrained, arm: str) -> float:
    folders = retrained.folders[arm]
    return math.fsum(read_json(folder / "timing.json")["cpu_seconds_per_step"] for folder in folders) / len(folders)


def _spent(scored: Scored, preview: Preview, retrained: Retrained | None) -> float | None:
    if retrained is None:
        return None
    known = [scored.spent, retrained.spent, *([] if preview.skipped else [preview.spent])]
    spent = [one.cpu_seconds for one in known if one is not None and one.anew]
    return math.fsum(spent) if len(spent) == len(known) else None
