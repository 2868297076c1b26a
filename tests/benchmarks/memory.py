"""Whether peak memory grows with the number of points: `python -m tests.benchmarks.memory OUT`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.benchmarks.rows import Row, write
from tests.benchmarks.setups import ROOT

FEW, MANY, QUERIES, BATCH = 2_000, 20_000, 100, 256


def main() -> None:
    """Measure and write the row."""
    few, many = (peak("cached", "large", points, QUERIES, BATCH) for points in (FEW, MANY))
    note = f"{few:.0f} MB and {many:.0f} MB with a full factor_cache of 32 MB in memory and 64 MB on disk"
    on = f"mlp, {FEW:,} and {MANY:,} x {QUERIES}"
    write(Path(sys.argv[1]), [Row("peak memory, ten times the points", on, many / few, "x", 1.05, note)])


def peak(job: str, setup: str, points: int, queries: int, batch: int) -> float:
    """MB of a job in a fresh process of this interpreter."""
    command = [sys.executable, "-m", "tests.benchmarks.peak", job, setup, str(points), str(queries), str(batch)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


if __name__ == "__main__":
    main()
