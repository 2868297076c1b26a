"""`make proof`: every cell, one on each core, and the table in docs/proof.md from all that were ever measured.

A cell, one setting with one seed, is a file in docs/proof/ that names its day and revision. One that is there is kept:
take away what is to be measured again.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from datetime import date
from pathlib import Path

import torch

from storage.files import atomic_write_text
from tests.proof import left_out
from tests.proof.cells import Cell, Removal, from_json, measure, to_json
from tests.proof.intervals import interval
from tests.proof.settings import REDUNDANT, SETTINGS, Setting

ROOT = Path(__file__).parents[2]
ORDER = (
    "baseline", "challenger", "control", "harmful alone", "mislabeled alone",
    "influence shuffled", "suspicion shuffled",
    "loss", "EL2N", "out-of-fold loss", "kNN", "conformity", "truth",
)  # fmt: skip


KINDS = {"errors": (SETTINGS, measure), "redundant": (REDUNDANT, left_out.measure)}


def main() -> None:
    """Measure what is missing and write the table of all that the folder holds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tasks", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--cells", type=Path, default=ROOT / "docs" / "proof")
    arguments = parser.parse_args()
    arguments.cells.mkdir(parents=True, exist_ok=True)
    wanted = [
        (kind, setting) for kind in arguments.kinds for name in arguments.tasks for setting in KINDS[kind][0][name]
    ]
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a cell for each core: more threads wait for one another
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=spawn) as pool:
        futures = [
            pool.submit(_cell, kind, setting, seed, arguments.cells)
            for seed in range(arguments.seeds)
            for kind, setting in wanted
        ]
        for future in futures:
            future.result()
    text = table([from_json(path.read_text()) for path in sorted(arguments.cells.glob("*.json"))])
    (ROOT / "docs").mkdir(exist_ok=True)
    (ROOT / "docs" / "proof.md").write_text(text)
    print(text)


def _revision() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _cell(kind: str, setting: Setting, seed: int, folder: Path) -> None:
    path = folder / f"{setting.key}-{seed}.json"
    if path.exists():
        return
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        cell = KINDS[kind][1](setting, seed, Path(scratch))
    cell = replace(cell, measured=f"{date.today().isoformat()}, {_revision()}")
    atomic_write_text(path, to_json(cell))
    print(f"{setting.key}, seed {seed}: {cell.state} ({time.monotonic() - started:.0f} s)", flush=True)


def table(cells: Sequence[Cell]) -> str:
    """The Markdown page: one table per setting."""
    seeds = len({cell.seed for cell in cells})
    lines = [
        "# Proof",
        "",
        f"Measured {'; '.join(sorted({cell.measured for cell in cells}))}, {platform.machine()}, a cell on each of "
        f"{len(os.sched_getaffinity(0))} cores, torch {torch.__version__}; {seeds} seeds (split, planted errors and "
        "training), mean ± half of the 95 % t interval over seeds.",
        "Digits: 1,000 train points, 300 queries, 497 holdout points. Fashion-MNIST: 10,000 of the train images, the "
        "test images are 5,000 queries and 5,000 holdout points. The settings are the shipped ones (deploy/), and know "
        "nothing of what is planted.",
        "The cycles ran without Prefect and on one rank each; baseline, challenger and control are DeepSpeed models, "
        "all other lines plain torch by the same recipe.",
        "Every line removes points and trains again by the same recipe with the same number of steps; accuracy and "
        "loss are of the clean holdout set, over 3 training seeds each, on Fashion-MNIST 1 in plain torch.",
        "`loss`, `EL2N`, `out-of-fold loss`, `kNN` and `conformity` remove as many points as the proposal; each policy "
        "alone removes what it would propose; `truth` removes what is wrong.",
        "",
    ]
    by_setting = {cell.setting: [other for other in cells if other.setting == cell.setting] for cell in cells}
    for task, settings in SETTINGS.items():
        there = [setting for setting in settings if setting.key in by_setting]
        if there:
            lines += [f"## {task}", "", *_paired(there, by_setting)]
            lines += [line for setting in there for line in _setting(by_setting[setting.key], setting)]
    for task in REDUNDANT:
        if left := left_out.section(task, by_setting):
            lines += [f"## {task}: what may be left out", "", *left]
    return "\n".join(lines)


def _paired(settings: Sequence[Setting], cells: Mapping[str, Sequence[Cell]]) -> list[str]:
    """Of each setting how the cycles ended, and the holdout loss of the challenger less that of the other arms."""
    lines = [
        "Holdout loss of the challenger less that of the same seed's baseline and control, nats:",
        "",
        "| planted | cycles ended | proposed | of them wrong | - baseline | - control |",
        "|---|---|---|---|---|---|",
    ]
    for setting in settings:
        found = cells[setting.key]
        arms = [{name: cell.removals[name] for name in ("baseline", "challenger", "control")} for cell in found]
        less = [
            interval((arm["challenger"].loss - arm[other].loss for arm in arms), "+.4f")
            for other in ("baseline", "control")
        ]
        sizes = interval((arm["challenger"].size for arm in arms), ".0f")
        precision = interval((arm["challenger"].precision for arm in arms), ".2f")
        lines.append(f"| {' | '.join([setting.name, _ended(found), sizes, precision, *less])} |")
    return [*lines, ""]


def _ended(cells: Sequence[Cell]) -> str:
    counts = Counter(cell.state for cell in cells)
    return ", ".join(f"{state} {count}" for state, count in sorted(counts.items()))


def _setting(cells: Sequence[Cell], setting: Setting) -> list[str]:
    lines = [f"### {setting.name}", ""]
    lines += [
        "| removed by | points | precision | recall | AP | accuracy | loss (nats) |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in ORDER:
        found = [cell.removals[name] for cell in cells if name in cell.removals]
        if found:
            lines.append(f"| {LABELS.get(name, name)} | {_row(found)} |")
    return [*lines, ""]


LABELS = {
    "baseline": "nothing (baseline)",
    "challenger": "**the proposal (challenger)**",
    "control": "random (control)",
    "influence shuffled": "both policies, influence shuffled",
    "suspicion shuffled": "both policies, suspicion shuffled",
    "truth": "the truth (oracle)",
}


def _row(found: Sequence[Removal]) -> str:
    columns: list[tuple[Callable[[Removal], float | None], str]] = [
        (lambda removal: removal.size, ".0f"),
        (lambda removal: removal.precision, ".2f"),
        (lambda removal: removal.recall, ".2f"),
        (lambda removal: removal.average_precision, ".2f"),
        (lambda removal: removal.accuracy, ".4f"),
        (lambda removal: removal.loss, ".3f"),
    ]
    return " | ".join(interval((column(removal) for removal in found), form) for column, form in columns)


if __name__ == "__main__":
    main()
