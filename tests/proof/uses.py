"""`make proof-uses`: where influence tells what cheap signals do not, and where not; docs/uses.md.

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
from tests.proof.run import ROOT
from tests.proof.use_cells import ASKED, COPIES, FOLDS, POINTS, QUERIES, RETRAINS, TEST, WRONG, Uses, kept

METHOD = ("tests/proof/use_cells.py", "tests/proof/lds_models.py")
SEEDS = 5


def main() -> None:
    """Measure what is missing and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=Path, default=ROOT / "build" / "uses" / digest(METHOD))
    arguments = parser.parse_args()
    arguments.cells.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    text = page([kept(seed, arguments.cells) for seed in range(SEEDS)])
    (ROOT / "docs" / "uses.md").write_text(text)
    print(text)


def page(cells: Sequence[Uses]) -> str:
    """The Markdown page."""
    return "\n".join(
        [
            "# What influence is for",
            "",
            f"`make proof-uses`, {date.today().isoformat()}, {platform.machine()}, one of "
            f"{os.cpu_count()} cores, torch {torch.__version__}, "
            f"{sum(cell.seconds for cell in cells) / 60:.0f} minutes of CPU; {len(cells)} seeds of split, errors and "
            "training, ± half of the 95 % t interval over them.",
            f"Fashion-MNIST, {POINTS:,} train points, {QUERIES} clean queries, {TEST:,} clean test images, the MLP and "
            "the recipe of least held-out loss of docs/lds.md. EK-FAC over four checkpoints, damping = weight decay; "
            f"{RETRAINS} retrainings of every set, of as many steps each.",
            "",
            *_errors(cells),
            *_chosen(cells),
            *_redundant(cells),
        ]
    )


def _errors(cells: Sequence[Uses]) -> list[str]:
    lines = [
        "## Errors that repeat themselves",
        "",
        "*Systematic*: the brightest coats are labelled pullover, the darkest sneakers sandal, "
        f"{WRONG} points. *Copies*: {WRONG // COPIES} points with a wrong label, each {COPIES} times. Models "
        f"learn both; fold models ({FOLDS} folds) and neighbours see them confirmed. Accuracy after removing {WRONG}.",
        "",
        "| removed by | systematic: AUC / AP | accuracy | copies: AUC / AP | accuracy |",
        "|---|---|---|---|---|",
    ]
    for name in cells[0].accuracy["copies"]:
        row = [name]
        for kind in ("systematic", "copies"):
            pair = "-"
            if name in cells[0].found[kind]:
                pair = " / ".join(interval([cell.found[kind][name][part] for cell in cells]) for part in (0, 1))
            row += [pair, interval([cell.accuracy[kind][name] for cell in cells])]
        lines.append(f"| {' | '.join(row)} |")
    return [*lines, ""]


def _chosen(cells: Sequence[Uses]) -> list[str]:
    lines = [
        "## Which points a prediction rests on",
        "",
        f"{ASKED} random queries; the mean rise of a query's loss when the 50 points that are said to help it most are "
        "removed, nats.",
        "",
        "| removed by | rise |",
        "|---|---|",
    ]

    def rise(name: str) -> str:
        return interval([cell.rise[name] for cell in cells], ".2f")

    return [*lines, *(f"| {name} | {rise(name)} |" for name in cells[0].rise), ""]


def _redundant(cells: Sequence[Uses]) -> list[str]:
    shares = [share for share in cells[0].left if share != "0%"]
    whole = interval([cell.left["0%"]["nothing"] for cell in cells])
    lines = [
        "## What may be left out",
        "",
        f"Test accuracy without the clean points that a signal calls the least needed; with all of them {whole}.",
        "",
        f"| left out by least | {' | '.join(shares)} |",
        "|---" * (len(shares) + 1) + "|",
    ]
    for name in cells[0].left[shares[0]]:
        row = [name, *(interval([cell.left[share][name] for cell in cells]) for share in shares)]
        lines.append(f"| {' | '.join(row)} |")
    return [*lines, ""]


if __name__ == "__main__":
    main()
