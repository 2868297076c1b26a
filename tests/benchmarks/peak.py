"""Peak memory of one job, in a process of its own: `python -m tests.benchmarks.peak JOB SETUP POINTS QUERIES BATCH`.

What counts is the highest resident size (VmHWM of /proc/self/status: unlike ru_maxrss it does not remember the process
that started this one) above what is resident after the imports and with the data loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch

from influence import Fisher
from tests.benchmarks.floor import Work
from tests.benchmarks.jobs import Job
from tests.benchmarks.setups import Setup, load

CACHE = 32 << 20  # bytes in memory, and twice that on disk: full at 2,000 points of the MLP


def main() -> None:
    """Run the job of the command line and print its peak."""
    torch.set_num_threads(1)
    job, name, *sizes = sys.argv[1:]
    points, queries, batch = map(int, sizes)
    work = JOBS[job](load(name).first(points, queries), batch)
    resident = status("VmRSS")
    work()
    print((status("VmHWM") - resident) / 1024)


def _cached(setup: Setup, batch: int) -> Work:
    return lambda: Job(setup, batch, Fisher()).from_nothing(memory=CACHE, disk=2 * CACHE)


def _pairs(setup: Setup, batch: int) -> Work:
    return Job(setup, batch, Fisher("empirical")).pairs


def _kronfluence(setup: Setup, batch: int) -> Work:
    from tests.benchmarks.peers import kronfluence  # its imports are not to be counted

    return lambda: kronfluence(setup, 1e-3, batch)


JOBS: dict[str, Callable[[Setup, int], Work]] = {"cached": _cached, "pairs": _pairs, "kronfluence": _kronfluence}


def status(key: str) -> int:
    """kB, as the kernel keeps them of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key + ":"))


if __name__ == "__main__":
    main()
