"""The yardstick: CPU seconds, and how many of them one plain forward and backward costs.

The floor is one forward and backward over the same train and query points, all weights trainable, at the fastest batch
size of 64 … 1024, on one thread. What is compared is run in turns, in one process: a slow moment of the machine falls
on both sides.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from statistics import median

from tests.benchmarks.setups import Setup, losses

SIZES = (64, 128, 256, 512, 1024)
Work = Callable[[], object]


def cpu_seconds(work: Work) -> float:
    """Of this process, all threads, while `work` runs; what it returns is dropped."""
    gc.collect()
    started = time.process_time()
    work()
    return time.process_time() - started


def in_turns(works: Mapping[str, Work], rounds: int) -> dict[str, float]:
    """Median CPU seconds of each, over rounds in which each runs once."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            taken[name].append(cpu_seconds(work))
    return {name: median(seconds) for name, seconds in taken.items()}


def forward_backward(setup: Setup, size: int) -> None:
    """Once over all train and query points."""
    for points in (setup.train, setup.queries):
        for batch in points.batches(size):
            losses(setup.model, batch).sum().backward()
            setup.model.zero_grad()


def floor_batch(setup: Setup) -> int:
    """The batch size at which the floor is lowest, tried upwards until one is a tenth slower than the best."""
    best, fastest = 0, float("inf")
    for size in SIZES:
        some = setup.first(max(size, 256), 0)
        seconds = in_turns({"": lambda some=some, size=size: forward_backward(some, size)}, rounds=3)[""]
        taken = seconds / len(some.train)
        if taken > 1.1 * fastest or size > len(setup.train):
            break
        if taken < fastest:
            best, fastest = size, taken
    return best
