"""`python -m tests.proof.memorization`: proxies of memorization against subset retraining; docs/memorization.md.

Cells that are there are kept, as long as the way they are measured is the same.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import mean

import torch

from tests.proof.days import days
from tests.proof.flips import digest
from tests.proof.lds import interval
from tests.proof.memorization_cells import ALL, HELD_OUT, LAST, MODELS, POINTS, RATES, SHARE, TASKS, Cell, kept
from tests.proof.run import ROOT

METHOD = ("tests/proof/memorization_cells.py", "tests/proof/lds_models.py")
SEEDS = 5
AIM = 0.8  # of self-influence, on digits
Setting = tuple[str, float]
PROTOCOL = f"""\
Oracle: Feldman and Zhang's memorization (arXiv 2008.03703) with the probability of the given label as the outcome:
its mean over the models that saw the point less that over those that did not, {MODELS} models, each on a random
{SHARE:.0%} of the {POINTS:,} points. Networks and recipes of docs/lds.md, those of least held-out loss. Figures are
rank correlations over the points between a signal of one model trained on all of them and the oracle. *Ceiling*: what
the oracle's expectation itself would reach, from the agreement of two halves of the models.

Signals are means over four checkpoints (25, 50, 75 and 100 % of the steps), then of the last alone; larger = more
memorized. Self-influence: EK-FAC, damping = weight decay. Held-out retrain: half the symmetric KL between the
model's predictions and those after the recipe once more, from there, on {HELD_OUT} held-out points. `-`: at
some seed no point is predicted wrongly, which ranks nothing."""


def main() -> None:
    """Measure what is missing and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=Path, default=ROOT / "build" / "memorization" / digest(METHOD))
    arguments = parser.parse_args()
    arguments.cells.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    settings = list(product(TASKS, RATES))
    found = {  # seed by seed, so that a run that is stopped leaves whole columns
        (seed, setting): kept(*setting, seed, arguments.cells) for seed in range(SEEDS) for setting in settings
    }
    columns = {setting: [found[seed, setting] for seed in range(SEEDS)] for setting in settings}
    text = page(columns, days(path for path in arguments.cells.iterdir() if path.is_file()))
    (ROOT / "docs" / "memorization.md").write_text(text)
    print(text)


def page(cells: Mapping[Setting, Sequence[Cell]], measured: str) -> str:
    """The Markdown page, of each setting's cells by seed and the days of their files."""
    every = [cell for column in cells.values() for cell in column]
    seeds = len(next(iter(cells.values())))
    return "\n".join(
        [
            "# Which proxy tells memorization",
            "",
            f"`python -m tests.proof.memorization`, {measured}, {platform.machine()}, one of "
            f"{os.cpu_count()} cores, torch {torch.__version__}, "
            f"{sum(cell.seconds for cell in every) / 60:.0f} minutes of CPU; {seeds} seeds of split, flips, subsets "
            "and training, ± half of the 95 % t interval over them.",
            "",
            *PROTOCOL.splitlines(),
            "",
            *_table("mean over four checkpoints", cells, ALL),
            *_table("last checkpoint", cells, LAST),
            *_verdict(cells),
        ]
    )


def _table(title: str, cells: Mapping[Setting, Sequence[Cell]], way: str) -> list[str]:
    names = [name for name, ways in next(iter(cells.values()))[0].spearman.items() if way in ways]
    lines = [f"## Rank correlation with the oracle, {title}", ""]
    lines.append(f"| signal | {' | '.join(map(_named, cells))} |")
    lines.append("|---" * (len(cells) + 1) + "|")
    for name in names:
        row = [_interval([cell.spearman[name][way] for cell in column]) for column in cells.values()]
        lines.append(f"| {name} | {' | '.join(row)} |")
    for name, figure in (("ceiling", "ceiling"), ("*median memorization*", "memorization")):
        row = [_interval([getattr(cell, figure) for cell in column]) for column in cells.values()]
        lines.append(f"| {name} | {' | '.join(row)} |")
    return [*lines, ""]


def _verdict(cells: Mapping[Setting, Sequence[Cell]]) -> list[str]:
    """For each setting how far self-influence is from the best other signal, seed by seed, each at its better way."""
    lines = ["## Which wins", ""]
    for setting, column in cells.items():
        own, others = _best(column, own=True), _best(column, own=False)
        lead = [a - b for a, b in zip(own[1], others[1], strict=True)]
        said = _interval(lead)
        known = "" if abs(mean(lead)) > float(said.split(" ± ")[1]) else ", not told apart by these seeds"
        aim = f"; aim {AIM}, {'met' if mean(own[1]) >= AIM else 'not met'}" * (setting[0] == "digits")
        lines.append(
            f"- {_named(setting)}: {own[0]} {mean(own[1]):.3f}{aim}; next {others[0]} {mean(others[1]):.3f}, "
            f"difference {said}{known}."
        )
    return [*lines, ""]


def _best(column: Sequence[Cell], *, own: bool) -> tuple[str, list[float]]:
    """The signal and way of the largest mean, and its figures by seed."""
    found = {
        f"{name}, {'last checkpoint' if way == LAST else 'four checkpoints'}": [
            one.spearman[name][way] for one in column
        ]
        for name, ways in column[0].spearman.items()
        for way in ways
        if (name == "self-influence") is own
    }
    known = {name: figures for name, figures in found.items() if not math.isnan(mean(figures))}
    name = max(known, key=lambda name: mean(known[name]))
    return name, known[name]


def _named(setting: Setting) -> str:
    task, rate = setting
    return f"{TASKS[task].network.split(' MLP')[0]}, {f'{rate:.0%} flips' if rate else 'clean'}"


def _interval(values: Sequence[float]) -> str:
    return "-" if any(map(math.isnan, values)) else interval(values)


if __name__ == "__main__":
    main()
