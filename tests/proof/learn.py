"""`make proof-learning`: points dropped while a model learns, beside points removed after it has; docs/learning.md.

Cells that are there are kept, as long as the way they are measured is the same.
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import torch

from tests.proof.flips import digest
from tests.proof.lds import interval
from tests.proof.learn_cells import CAP, EVERY, FRACTION, FROM, QUERIES, RATE, SETTINGS, Cell, kept
from tests.proof.run import ROOT

METHOD = ("influence/conformity.py", "influence/discovery.py", "influence/dropping.py", "tests/proof/learn_cells.py")
SEEDS = 5


def main() -> None:
    """Measure what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--cells", type=Path, default=ROOT / "build" / "learning" / digest(METHOD))
    arguments = parser.parse_args()
    arguments.cells.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    text = page([kept(setting, seed, arguments.cells) for seed in range(arguments.seeds) for setting in SETTINGS])
    (ROOT / "docs" / "learning.md").write_text(text)
    print(text)


def page(cells: Sequence[Cell]) -> str:
    """The Markdown page."""
    seeds = len({cell.seed for cell in cells})
    lines = [
        "# Points dropped while a model learns",
        "",
        f"`make proof-learning`, {date.today().isoformat()}, {platform.machine()}, one of {os.cpu_count()} cores, "
        f"torch {torch.__version__}, {sum(cell.seconds for cell in cells) / 60:.0f} minutes of CPU; {seeds} seeds of "
        "split, errors and training, ± half of the 95 % t interval over them.",
        f"Digits (1,000 train points) and Fashion-MNIST (2,000), {RATE:.0%} of the labels wrong, {QUERIES} clean "
        "queries; MLPs of 64 and 32 hidden units, SGD by the recipes of least held-out loss of docs/lds.md. Every "
        "model takes as many steps and is trained once.",
        f"*While learning*: after 1/{FROM} of the epochs and every 1/{EVERY} of them, up to {FRACTION:.0%} of the "
        f"points leave, {CAP:.0%} in all, by influence on the queries only those that harm beyond their error. "
        f"*After*: a model is trained on all points; the shipped policies and their budget of {CAP:.0%} say what is "
        "removed; another is trained without it. In brackets: how many points went, and the share of these that was "
        "truly wrong.",
        "",
    ]
    for group in (SETTINGS[:2], SETTINGS[2:]):
        names = [setting.name for setting in group]
        lines += [f"| test accuracy | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
        lines += [f"| {arm} | {' | '.join(_said(cells, name, arm) for name in names)} |" for arm in cells[0].arms]
        lines += [""]
    return "\n".join(lines)


def _said(cells: Sequence[Cell], setting: str, arm: str) -> str:
    ours = [cell.arms[arm] for cell in cells if cell.setting == setting]
    accuracy, points = interval([one.accuracy for one in ours]), sum(one.points for one in ours) / len(ours)
    if not points:
        return accuracy
    right = sum(one.precision * one.points for one in ours) / sum(one.points for one in ours)
    return f"{accuracy} ({points:.0f}, {right:.2f})"


if __name__ == "__main__":
    main()
