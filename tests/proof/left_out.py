"""What may be left out: the policy `redundant` on planted copies and on clean data, beside leaving out what is easiest.

All models of a cell see their points as often, so that those that leave points out take fewer steps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from flows.recipe import steps_for
from storage.proposals import Proposal
from tests.proof.cells import Cell, Comparison, Removal, arms_of, cycle
from tests.proof.intervals import interval
from tests.proof.settings import REDUNDANT, Setting

SHARES = (0.2, 0.4)
EASIEST = {"least loss": "loss", "least EL2N": "signal_el2n"}


class LeftOut(Comparison):
    """Models without what is redundant, and without other points: what is planted are copies, not errors."""

    def removals(self, size: int) -> dict[str, Removal]:
        """The proposal of this size, in plain torch too; where nothing is planted, two shares by every way."""
        points, generator = len(self._points), torch.Generator().manual_seed(self._config.training.seed)
        proposed = set(Proposal.read(self._folder).points)
        found = {
            "nothing": torch.zeros(points, dtype=torch.bool),
            "redundant": torch.tensor([point in proposed for point in self._points.ids]),
        }
        if bool(self._wrong.any()):
            found |= {"random": self._top(torch.rand(points, generator=generator), size), "truth": self._wrong}
        else:
            for share in SHARES:
                most = round(share * points)
                found[f"redundant, {share:.0%}"] = self._column("redundancy") <= share
                found[f"random, {share:.0%}"] = self._top(torch.rand(points, generator=generator), most)
                found |= {f"{name}, {share:.0%}": self._top(-self._column(of), most) for name, of in EASIEST.items()}
        return {name: self._removal(gone, None) for name, gone in found.items()}

    def _planted(self) -> Tensor:
        """The copies that the workload made, which are the last of its points."""
        named = list(self._workload.points().ids)
        copies = round(self._config.workload.options.get("copies", 0) * len(named))
        made = set(named[len(named) - copies :])
        return torch.tensor([point in made for point in self._points.ids])

    def _steps(self, gone: Tensor) -> int:
        return steps_for(self._config.training, int((~gone).sum()))


def measure(setting: Setting, seed: int, folder: Path) -> Cell:
    """Run the cycle of a cell and its comparisons in a folder, as `tests.proof.cells.measure` does of errors."""
    config, summary = cycle(setting, seed, folder)
    removals = LeftOut(config, setting.trainings).removals(summary["proposed"])
    arms = arms_of(summary)
    arms["challenger"] = replace(
        arms["challenger"], precision=removals["redundant"].precision, recall=removals["redundant"].recall
    )
    return Cell(setting.key, seed, summary["state"], summary["reason"], summary["proposal"], arms | removals)


def section(task: str, cells: Mapping[str, Sequence[Cell]]) -> list[str]:
    """The lines of one task, of whatever is measured."""
    copies, clean = (cells.get(setting.key, ()) for setting in REDUNDANT[task])
    return [*(_copies(copies) if len(copies) > 1 else ()), *(_shares(clean) if len(clean) > 1 else ())]


def _copies(cells: Sequence[Cell]) -> list[str]:
    ended = ", ".join(f"{state} {count}" for state, count in sorted(Counter(cell.state for cell in cells).items()))
    lines = [
        "### Exact copies",
        "",
        "A tenth of the train points are exact copies of others, no label is wrong; policy `redundant` with its "
        f"shipped share and budgets. Cycles: {ended}. Accuracy in points, less that of the same seed's baseline, or of "
        "nothing left out in plain torch; as many epochs, so fewer steps.",
        "",
        "| left out | points | of them copies | copies found | accuracy | less nothing's |",
        "|---|---|---|---|---|---|",
    ]
    for name, before in {
        "challenger": "baseline",
        "control": "baseline",
        "random": "nothing",
        "truth": "nothing",
    }.items():
        found = [(cell.removals[name], cell.removals[before]) for cell in cells]
        lines.append(f"| {COPIED[name]} | {_row(found, planted=name != 'control')} |")
    return [*lines, ""]


COPIED = {
    "challenger": "**the proposal (challenger)**",
    "control": "random, of the same classes (control)",
    "random": "random",
    "truth": "all copies",
}


def _shares(cells: Sequence[Cell]) -> list[str]:
    lines = [
        "### Clean data",
        "",
        "Nothing is planted and nothing wrong is known. `redundant` with `redundant_share` and budgets of as much; "
        "*least loss* and *least EL2N* leave out the points of the smallest, the easiest. All in plain torch, as many "
        "epochs; accuracy in points, less that with all points.",
        "",
        "| left out | points | accuracy | less nothing's |",
        "|---|---|---|---|",
    ]
    for name in (f"{way}, {share:.0%}" for share in SHARES for way in ("redundant", "random", *EASIEST)):
        found = [(cell.removals[name], cell.removals["nothing"]) for cell in cells]
        lines.append(f"| {name} | {_row(found, planted=None)} |")
    ended = ", ".join(f"{state} {count}" for state, count in sorted(Counter(cell.state for cell in cells).items()))
    arms = [(cell.removals["challenger"], cell.removals["baseline"]) for cell in cells]
    lines.append(f"| redundant, 20% (the cycle; {ended}) | {_row(arms, planted=None)} |")
    return [*lines, ""]


def _row(found: Sequence[tuple[Removal, Removal]], *, planted: bool | None) -> str:
    """Cells of a line; of what is planted they tell where that is known, and nothing where it is None."""
    columns: list[tuple[Callable[[Removal, Removal], float | None], str]] = [
        (lambda one, _: one.accuracy, ".4f"),
        (lambda one, before: 100 * (one.accuracy - before.accuracy), "+.2f"),
    ]
    if planted is not None:
        columns.insert(0, (lambda one, _: one.recall if planted else None, ".3f"))
        columns.insert(0, (lambda one, _: one.precision if planted else None, ".3f"))
    columns.insert(0, (lambda one, _: one.size, ".0f"))
    return " | ".join(interval((value(*pair) for pair in found), form) for value, form in columns)
