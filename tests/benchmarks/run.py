"""`make bench`: measure what is asked for, and write docs/benchmarks.md from it and what was measured before.

Each part runs in a process of its own; what compares with other libraries runs in their interpreter, because pyDVL
asks for a numpy that Tamis does not run with.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import torch

from tests.benchmarks.rows import Row, table
from tests.benchmarks.setups import RECIPES, ROOT

PEERS = ROOT / "build" / "bench" / "peers" / "bin" / "python"
OWN = Path(sys.executable)
PARTS: dict[str, tuple[Path, tuple[str, ...]]] = {  # interpreter, module and its first arguments
    "mlp": (OWN, ("tests.benchmarks.ratios", "mlp")),
    "cnn": (OWN, ("tests.benchmarks.ratios", "cnn")),
    "transformer": (OWN, ("tests.benchmarks.ratios", "transformer")),
    "ranks": (OWN, ("tests.benchmarks.ranks", "ranks")),
    "points": (OWN, ("tests.benchmarks.ranks", "points")),
    "memory": (OWN, ("tests.benchmarks.memory",)),
    "tables": (OWN, ("tests.benchmarks.tables",)),
    "view": (OWN, ("tests.benchmarks.view",)),
    "kronfluence-mlp": (PEERS, ("tests.benchmarks.against", "mlp")),
    "kronfluence-cnn": (PEERS, ("tests.benchmarks.against", "cnn")),
    "kronfluence-transformer": (PEERS, ("tests.benchmarks.against", "transformer")),
    "pydvl": (PEERS, ("tests.benchmarks.against", "pairwise")),
    "convex": (PEERS, ("tests.benchmarks.convex",)),
    "selection": (OWN, ("tests.benchmarks.selection",)),
    "help": (OWN, ()),
}
BENCHES = (
    "against",
    "convex",
    "floor",
    "jobs",
    "memory",
    "models",
    "peak",
    "peers",
    "ranks",
    "ratios",
    "setups",
    "tables",
)
SELECTING = ("budgets", "policy_sql", "proposals", "score_sql", "selection")
VIEWING = ("dataset_digest", "exports", "views")
MEASURED = (
    *("influence", "flows/ranks"),
    *(f"storage/{part}.py" for part in (*SELECTING, *VIEWING)),
    *(f"tests/benchmarks/{part}.py" for part in (*BENCHES, "selection", "view")),
)
KEPT, PAGE = ROOT / "docs" / "benchmarks.json", ROOT / "docs" / "benchmarks.md"


def main() -> None:
    """Measure the parts and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    arguments = parser.parse_args()
    parts: dict[str, Any] = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    for name in arguments.only:
        started, at = time.monotonic(), f"{date.today().isoformat()}, {_revision()}"
        parts[name] = {"machine": _machine(), "at": at, "rows": _measure(name)}
        KEPT.write_text(json.dumps(parts, indent=1) + "\n")
        PAGE.write_text(page(parts))
        print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)
    print(PAGE.read_text())


def page(parts: Mapping[str, Any]) -> str:
    """The Markdown page: every part as it was measured last."""
    setups = "; ".join(f"{name} {recipe.points:,} x {recipe.queries:,}" for name, recipe in RECIPES.items())
    lines = [
        "# Speed and memory",
        "",
        "Float32 unless said; seed 0; 1 thread a process. Ratios are of CPU seconds in one run, medians of rounds in "
        "which both sides take turns. The floor is one plain forward and backward over the same train and query "
        "points, all weights trainable, at its fastest batch size. Peak memory is that of a fresh process above what "
        "is resident after imports and with the data loaded. Data are random but class-structured, models trained a "
        f"little ({setups}); a row says how many of these points it takes. `make bench` measures again, "
        "`python -m tests.benchmarks.run --only mlp` a part; the last column says when, and the last commit of what "
        "is measured.",
        "",
    ]
    there = [name for name in PARTS if name in parts]
    for machine in dict.fromkeys(parts[name]["machine"] for name in there):
        rows = [
            (Row(**row), parts[name]["at"])
            for name in there
            if parts[name]["machine"] == machine
            for row in parts[name]["rows"]
        ]
        lines += [f"## {machine}", "", table(rows), ""]
    return "\n".join(lines)


def _measure(name: str) -> list[dict[str, Any]]:
    if name == "help":
        return [asdict(_help())]
    interpreter, command = PARTS[name]
    if not interpreter.exists():
        raise SystemExit(f"{name} needs {interpreter.relative_to(ROOT)}: run `make bench`, which makes it")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        subprocess.run([interpreter, "-m", *command, out], cwd=ROOT, env=environment, check=True)
        rows: list[dict[str, Any]] = json.loads(out.read_text())
    return rows


def _help() -> Row:
    def once() -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "flows", "--help"], check=True, capture_output=True)
        return time.perf_counter() - started

    return Row("`tamis --help`", "answers", median(once() for _ in range(7)), "s", 0.3, "wall clock, median of 7")


def _machine() -> str:
    return f"{_processor()}, {platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"


def _revision() -> str:
    """The last commit of what is measured and of what measures; other commits leave figures as they are."""
    git = ["git", "-C", str(ROOT)]
    command = [*git, "log", "-1", "--format=%h", "--", *MEASURED]
    commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    clean = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", *MEASURED], check=False).returncode == 0
    return commit if clean else f"{commit}-dirty"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    main()
