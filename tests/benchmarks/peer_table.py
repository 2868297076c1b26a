"""`make bench-peers`: kronfluence, pyDVL, captum and dattri beside ours, and docs/peers.md. What has run is kept.

The same checkpoints, train points and queries for all, every pair of them as influence. A row is measured by
`peer_runs` in a process of its own; models are trained, and scores judged, here.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor

from influence.validation import lds, noise_ceiling, spearman
from tests.benchmarks.peer_methods import LEFT_OUT, LIBRARIES, NONE, REFERENCE, ROWS, Row
from tests.benchmarks.peer_problem import Handed
from tests.benchmarks.setups import ROOT
from tests.proof.days import days
from tests.proof.flips import digest
from tests.proof.lds import METHOD, interval
from tests.proof.lds_truth import POINTS, QUERIES, SETTINGS, base_models, data, own_subsets, own_truth, subsets, truth

TASKS = ("fashion-loss", "digits-accuracy")
SEEDS = 5
SHARED = tuple(f"tests/benchmarks/peer_{part}.py" for part in ("problem", "runs"))
PEERS = ROOT / "build" / "bench" / "peers" / "bin" / "python"
PROTOCOL = f"""\
{POINTS:,} train points, {QUERIES} queries, every pair; the models, halves and retrainings of docs/lds.md. LDS: rank
correlation of predicted and real loss over 100 random halves x 5 models each, mean over queries; mean over {SEEDS}
models ± half of the 95 % t interval. Every method scores the last checkpoint, unless its name says four. Damping is
added to the eigenvalues of the curvature of the mean loss. On the first model all are tried that the row lists, and the
one of highest LDS on 32 other halves, of one model each, is taken for all models: for ours as for theirs.

CPU seconds: fit and all pairs, one thread, median over the models. The floor is one plain forward and backward over the
same points and queries, measured beside it in the same process. Peak memory is that of the first run in a fresh
process, above what is resident with the library imported and the data loaded. Agreement: rank correlation over all
pairs, mean over the models, with our conjugate gradients, which solve the damped Gauss-Newton equations of all layers
exactly; each with the damping it chose. A row may take 600 CPU seconds and 8 GB. *Tamis (left out)* is from
`tests/left_out`: no part of Tamis, since other estimators of ours are ahead of it."""


WHY = """\
## What failed, and why

- captum's naive influence, pyDVL's direct solver and dattri's explicit one build the Hessian, 52,650 x 52,650 float32
  numbers on Fashion-MNIST: 11 GB. On digits, where it takes 172 MB, captum's finishes, far from the others' ranking;
  the other two ask for more on the way to it than a row may take.
- pyDVL's CG on Fashion-MNIST passes 600 CPU seconds: residuals become NaN, and it goes on to its 200 iterations. On
  digits it converges.
- dattri's Arnoldi on Fashion-MNIST passes 8 GB; on digits it takes six times the memory of ours.
- dattri 0.3.0's EK-FAC ranks about as gradient dot does: `func/fisher.py`, lines 368 and 469, and
  `algorithm/influence_function.py`, line 1020, multiply by the eigenvectors as if they were rows; `torch.linalg.eigh`
  gives them as columns.
- Arnoldi as pyDVL, dattri and captum have it by default, and as published, leaves nothing of a gradient outside of the
  directions that were found. pyDVL's `use_woodbury` keeps the rest, as our complement does.
- dattri's TracIn is projected to 512 dimensions: `None` for the projection takes a default one.
- pyDVL's Nystroem raises its damping by itself where a Cholesky decomposition fails.
- LiSSA comes near the exact solution only where it runs long: ours takes all points in each of its 200 steps, the
  others a batch, in less time and with less quality.
"""


@dataclass(frozen=True)
class Judged:
    """A row that ran.

    Attributes:
        quality: LDS of every model.
        agreement: rank correlation with the reference, mean over the models.
    """

    row: Row
    quality: list[float]
    damping: float
    seconds: float
    floors: float
    peak: float
    agreement: float


def main() -> None:
    """Measure what is missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=Path, default=ROOT / "build" / "bench" / "peer-cells")
    parser.add_argument("--page", action="store_true", help="measure nothing, write what is there")
    asked = parser.parse_args()
    folder: Path = asked.cells
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    lines: list[str] = []
    for library in () if asked.page else LIBRARIES:
        _run(library, folder)
    for task in TASKS:
        lines += _section(task, folder)
    lines = [*_head(folder), *lines]
    (ROOT / "docs" / "peers.md").write_text("\n".join([*lines, WHY, *_settings()]))
    print("\n".join(lines))


def _run(library: str, folder: Path) -> None:
    """What has neither runs nor an error yet, in the peers' interpreter."""
    rows = [(task, row) for task in TASKS for row in ROWS if row.library == library]
    jobs = [_job(task, row, folder) for task, row in rows if not _done(task, row, folder)]
    if not jobs:
        return
    asked = folder / f"{library}.json"
    asked.write_text(json.dumps(jobs))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "TQDM_DISABLE": "1"}
    command = [PEERS, "-m", "tests.benchmarks.peer_runs", library, asked]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)


def _job(task: str, row: Row, folder: Path) -> dict[str, Any]:
    models = [_handed(task, seed, folder) for seed in range(SEEDS)]
    out = _cells(task, row, folder)
    return {"method": row.method, "dampings": row.dampings, "models": [*map(str, models)], "out": [*map(str, out)]}


def _done(task: str, row: Row, folder: Path) -> bool:
    return all(path.exists() for path in _cells(task, row, folder)) or bool(_error(task, row, folder))


def _section(task: str, folder: Path) -> list[str]:
    setting, losses = SETTINGS[task], truth(task, _truths())
    there = [row for row in ROWS if all(path.exists() for path in _cells(task, row, folder))]
    failed = [row for row in ROWS if _error(task, row, folder)]
    missing = [_name(row) for row in ROWS if row not in there and row not in failed]
    judged = [_judge(task, row, losses.mean(1), folder) for row in there]
    return [
        f"## {setting.network}: {setting.chosen}",
        "",
        f"Noise ceiling {float(noise_ceiling(losses).mean()):.3f}.",
        "",
        "| library | method | damping | LDS | CPU s | x floor | peak MB | agreement |",
        "|---|---|---|---|---|---|---|---|",
        *[_line(one) for one in sorted(judged, key=lambda one: -mean(one.quality))],
        "",
        *(
            ["Did not run:", "", *[f"- {_name(row)}: `{_error(task, row, folder)}`" for row in failed], ""]
            * bool(failed)
        ),
        *([f"Not measured yet: {', '.join(missing)}.", ""] * bool(missing)),
    ]


def _judge(task: str, row: Row, losses: Tensor, folder: Path) -> Judged:
    runs: list[dict[str, Any]] = [torch.load(path) for path in _cells(task, row, folder)]
    exact = [torch.load(path)["scores"] for path in _cells(task, REFERENCE, folder) if path.exists()]
    return Judged(
        row=row,
        quality=[float(lds(run["scores"].double(), subsets(), losses).mean()) for run in runs],
        damping=runs[0]["damping"],
        seconds=median(run["seconds"] for run in runs),
        floors=median(run["seconds"] / run["floor"] for run in runs),
        peak=runs[0]["peak"],
        agreement=mean(spearman(run["scores"].flatten(), one.flatten()) for run, one in zip(runs, exact))
        if exact
        else math.nan,
    )


def _line(one: Judged) -> str:
    damping = "" if one.row.dampings == NONE else f"{one.damping:g}"
    library = _library(one.row)
    mark = "**" * (library == LIBRARIES["ours"])
    return (
        f"| {mark}{library}{mark} | {one.row.method} | {damping} | {interval(one.quality)} | {one.seconds:.2f} | "
        f"{one.floors:.0f} | {one.peak:.0f} | {one.agreement:.3f} |"
    )


def _head(folder: Path) -> list[str]:
    pinned = [line.strip() for line in (ROOT / "tests/benchmarks/peers.txt").read_text().splitlines()]
    versions = ", ".join(line.replace("==", " ") for line in pinned if line and not line.startswith("#"))
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    return [
        "# Side by side with other libraries",
        "",
        f"Measured {days(_measured(folder))}, {platform.machine()}, one of {os.cpu_count()} cores; "
        f"Tamis {ours}, {versions}; `make bench-peers`.",
        "",
        *PROTOCOL.splitlines(),
        "",
    ]


def _settings() -> list[str]:
    lines = ["## Settings", "", "| method | dampings tried | as |", "|---|---|---|"]
    for row in ROWS:
        tried = ", ".join(f"{one:g}" for one in row.dampings) if row.dampings != NONE else ""
        lines.append(f"| {_name(row)} | {tried} | {row.said} |")
    return [*lines, ""]


def _name(row: Row) -> str:
    return f"{_library(row)} {row.method}"


def _library(row: Row) -> str:
    return LIBRARIES[row.library] + " (left out)" * (row.library == "ours" and row.method in LEFT_OUT)


def _measured(folder: Path) -> Iterator[Path]:
    """Every run that there is, or its error."""
    for task in TASKS:
        for row in ROWS:
            for cell in _cells(task, row, folder):
                yield from (path for path in (cell, cell.with_suffix(".error")) if path.exists())


def _cells(task: str, row: Row, folder: Path) -> list[Path]:
    """Of each model; named by what they depend on."""
    source = digest([*SHARED, f"tests/benchmarks/peer_{row.library}.py"])
    method = "".join(letter if letter.isalnum() else "-" for letter in row.method)
    grid = "-".join(f"{one:g}" for one in row.dampings)
    return [folder / f"{task}-{row.library}-{method}-{grid}-{source}-{seed}.pt" for seed in range(SEEDS)]


def _error(task: str, row: Row, folder: Path) -> str:
    """What the row failed with, if it did."""
    path = _cells(task, row, folder)[0].with_suffix(".error")
    return path.read_text().splitlines()[0] if path.exists() else ""


def _handed(task: str, seed: int, folder: Path) -> Path:
    """The file of a problem, made once."""
    path, (points, queries) = folder / f"{task}-model-{seed}.pt", data(task)
    if not path.exists():
        handed = Handed(
            checkpoints=base_models(task, seed),
            points=(points.inputs, points.labels),
            queries=(queries.inputs, queries.labels),
            seed=seed,
            halves=own_subsets(),
            losses=own_truth(task, _truths())[:, 0],
        )
        torch.save(handed, path)
    return path


def _truths() -> Path:
    """Where `make proof-lds` keeps its retrainings."""
    folder = ROOT / "build" / "lds" / digest(METHOD)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


if __name__ == "__main__":
    main()
