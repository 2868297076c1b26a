"""`make proof-estimators`: every estimator on four tasks, and docs/estimators.md. Cells that are there are kept."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from tests.proof.days import days
from tests.proof.flips import digest
from tests.proof.lds import METHOD as LDS_METHOD
from tests.proof.lds import interval
from tests.proof.run import ROOT
from tests.proof.table_cells import BASELINES, Cell, Retrained, kept
from tests.proof.table_cost import Cost
from tests.proof.table_cost import kept as cost
from tests.proof.table_desiderata import section
from tests.proof.table_rows import LEFT_OUT, ROWS, USES
from tests.proof.table_tasks import TASKS

SEEDS = 5
METHOD = tuple(f"tests/proof/table_{part}.py" for part in ("models", "tasks"))
PROTOCOL = """\
Every row but turn-over dropout, which trains four with masks, and data values, which record a training of their own,
gets the same models: 1,000 points, 100 clean queries, SGD with momentum .9, checkpoints after 25, 50, 75 and 100 % of
the steps. *LDS*: rank correlation, per query, of predicted and real loss over 100 random halves, mean over queries (5
retrainings each on the perceptrons, 3 on the CNN, 2 on the transformer); by the damping that follows from the recipe,
and by the best for each model, on 32 other halves of one retraining each, of five (3 and 10 times it, and .3 and .1).
Chosen it was for K-FAC, EK-FAC, the diagonal, DataInf, the head and Arnoldi, compressed or not. The dual, and all that
is compressed for it, PCG and LiSSA keep to the recipe's, and what is left has none to choose: both columns hold one
figure. docs/lds.md has the dual with it chosen, on the perceptrons (.647 for .628 on the last checkpoint of
Fashion-MNIST, elsewhere within .003), and EK-FAC by a grid that goes on to .03. The dual leaves out .1 % of the trace,
by default in tamis.toml .03 %. *Flips*: a tenth of the labels changed uniformly; AUC / AP by influence on the queries,
and by self-influence, damping as chosen on clean data. *Gain*: points of test accuracy when as many as are flipped,
those most harmful to the queries, are removed and the model is trained anew for as many steps (2 models, beside 2
without removals of the same seeds). *Cost*: seconds of the processor on one thread for all pairs of one model, and
self-influence where it is told, in units of the floor (one plain forward and backward over the same points); *MB*: peak
above what was resident. ± is half of the 95 % t interval over 5 seeds of training and flips, or as many as stand in the
row's name."""


NOT_RUN = {
    "cnn": "LiSSA (100 products with all points for each query); PCG on 2 models and data value embedding on 3.",
    "transformer": "dual over 4 checkpoints, PCG, LiSSA and data value embedding: the dual of one checkpoint alone "
    "takes 142 CPU seconds a model.",
}
"""What was too dear, by task."""


def main() -> None:
    """Measure what is missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="*", choices=TASKS, default=list(TASKS))
    parser.add_argument("--rows", nargs="*", default=[*ROWS, *BASELINES])
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--cells", type=Path, default=ROOT / "build" / "table" / digest(METHOD))
    parser.add_argument("--page", action="store_true", help="measure nothing, write what is there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder: Path = arguments.cells
    for needed in (folder, _retrained(folder).settled):
        needed.mkdir(parents=True, exist_ok=True)
    if not arguments.page:
        for task in arguments.tasks:
            _measure(task, arguments.rows, arguments.seeds, folder)
    (ROOT / "docs" / "estimators.md").write_text(page(folder))


def _measure(task: str, rows: Sequence[str], seeds: int, folder: Path) -> None:
    for seed in range(seeds):
        for name in rows:
            kept(ROWS.get(name, name), name, task, seed, _retrained(folder), folder)
    for name in rows:
        path = folder / f"cost-{task}-{name.replace(' ', '_').replace('/', '_')}.json"
        if name in ROWS and not path.exists():
            command = [sys.executable, "-m", "tests.proof.table_cost", task, name]
            done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
            path.write_text(done.stdout.splitlines()[-1])


def page(folder: Path) -> str:
    """The Markdown page, of whatever is measured."""
    lines = [
        "# Every estimator, side by side",
        "",
        f"Measured {days(folder.glob('*.json'))}, {platform.machine()}, one of {os.cpu_count()} cores, torch "
        f"{torch.__version__}; `make proof-estimators`.",
        *PROTOCOL.splitlines(),
        "",
    ]
    for task in TASKS:
        lines += _section(task, folder)
    return "\n".join([*lines, *section(folder, SEEDS), *_uses()])


def _section(task: str, folder: Path) -> list[str]:
    lines = [
        f"## {TASKS[task].title}",
        "",
        "| estimator | LDS, damping by the recipe | damping chosen | flips by influence | by self-influence | gain | "
        "cost x floor | MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in (*ROWS, *BASELINES):
        cells = [_there(name, task, seed, folder) for seed in range(SEEDS)]
        found = [cell for cell in cells if cell is not None]
        if len(found) > 1:
            spent = folder / f"cost-{task}-{name.replace(' ', '_').replace('/', '_')}.json"
            few = "" if len(found) == SEEDS else f" ({len(found)} seeds)"
            lines.append(_row(name + few, found, cost(spent) if spent.exists() else None))
    return [*lines, "", *([f"Too dear to run in full: {NOT_RUN[task]}", ""] if task in NOT_RUN else [])]


def _there(name: str, task: str, seed: int, folder: Path) -> Cell | None:
    path = folder / f"{task}-{seed}-{name.replace(' ', '_').replace('/', '_')}.json"
    return kept(ROWS.get(name, name), name, task, seed, _retrained(folder), folder) if path.exists() else None


def _row(name: str, cells: Sequence[Cell], spent: Cost | None) -> str:
    judged = [cell.lds for cell in cells if cell.lds is not None]
    columns = [interval(one) for one in zip(*judged, strict=True)] if judged else ["", ""]
    for signal in ("influence", "self-influence"):
        pairs = [cell.found[signal] for cell in cells if signal in cell.found]
        columns.append(" / ".join(interval(one) for one in zip(*pairs, strict=True)) if pairs else "")
    gains = [100 * cell.gain for cell in cells if cell.gain is not None]
    columns.append(interval(gains, ".1f") if gains else "")
    columns += ["", ""] if spent is None else [f"{spent.seconds / spent.floor:.3g}", f"{spent.memory:.0f}"]
    return f"| {name} | {' | '.join(columns)} |"


def _uses() -> list[str]:
    lines = ["## When to take which", "", "| estimator | use |", "|---|---|"]
    lines += [f"| {name} | {use} |" for name, use in USES.items()]
    lines += [
        "",
        "Not part of Tamis (`tests/left_out`, `tests/proof`), since they win nowhere:",
        "",
        "| estimator | why |",
        "|---|---|",
    ]
    return [*lines, *(f"| {name} | {why} |" for name, why in LEFT_OUT.items()), ""]


def _retrained(folder: Path) -> Retrained:
    return Retrained(folder, ROOT / "build" / "lds" / digest(LDS_METHOD))


if __name__ == "__main__":
    main()
