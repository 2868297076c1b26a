"""`make bench`: scoring against its floor, side by side in one process, and how soon `tamis --help` answers.

The floor is one plain forward and backward over the same train and query points, all weights trainable, at the fastest
batch size of 64 … 1024. Each figure is the median of several rounds, in which floor and parts alternate.
"""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn

from flows.ranks.points import Points
from flows.workload import seeded_model
from flows.workloads.digits import CLASSES, Digits
from influence import (
    EKFAC,
    ChunkGrid,
    Damping,
    FactorSource,
    Scorer,
    alone,
    label_factors,
    linear_blocks,
    summarize_chunk,
)

ROUNDS = 7
CHUNK = 256


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    workload = Digits(rate=0.1, seed=0)
    points = Points("train", workload.points(), workload)
    queries = Points("query", workload.queries(), workload)
    model = seeded_model(workload, 0)
    rounds = [_round(workload, model, points, queries) for _ in range(ROUNDS + 1)][1:]  # the first one warms up
    floor = median(times["floor"] for times in rounds)
    print(f"{platform.processor() or platform.machine()}, 1 thread, torch {torch.__version__}, float32")
    print(f"{len(points)} train x {len(queries)} query points, MLP 64-64-32-10; floor {floor * 1e3:.2f} ms")
    for part in ("curvature", "queries", "scores"):
        print(f"{part:<10} {median(times[part] / times['floor'] for times in rounds):6.1f} x floor")
    print(f"tamis --help: {_help():.2f} s")


def _round(workload: Digits, model: nn.Module, points: Points, queries: Points) -> dict[str, float]:
    times = {
        "floor": min(
            _timed(lambda size=size: _floor(workload, model, points, queries, size)) for size in (64, 256, 1024)
        )
    }
    blocks = linear_blocks(model)
    ekfac = EKFAC(blocks)
    scorer = Scorer(ekfac, points=len(points), queries=len(queries))
    with FactorSource(model, blocks) as source:
        times["curvature"] = _timed(lambda: _fit(workload, source, ekfac, points))
        everything = queries.take(range(len(queries)))
        times["queries"] = _timed(lambda: scorer.add_queries(source.pull(source.forward(workload.loss, everything))))
        times["scores"] = _timed(lambda: _score(workload, source, scorer, points, queries.labels))
    return times


def _floor(workload: Digits, model: nn.Module, points: Points, queries: Points, size: int) -> None:
    for some in (points, queries):
        for rows in torch.arange(len(some)).split(size):
            workload.loss(model, some.take(rows)).sum().backward()
    model.zero_grad()


def _fit(workload: Digits, source: FactorSource, ekfac: EKFAC, points: Points) -> None:
    grid = ChunkGrid(len(points), CHUNK)
    for _ in range(ekfac.passes):
        for chunk in range(len(grid)):
            rows = grid.rows(chunk)
            logits = source.forward(workload.logits, points.take(rows))
            ekfac.accumulate(label_factors(source, logits), torch.ones(len(rows)))
        ekfac.reduce(alone)
    ekfac.finish(Damping("absolute", 0.1))


def _score(workload: Digits, source: FactorSource, scorer: Scorer, points: Points, labels: Tensor) -> None:
    grid = ChunkGrid(len(points), CHUNK)
    for chunk in range(len(grid)):
        batch = points.take(grid.rows(chunk))
        summarize_chunk(scorer.score(source.pull(source.forward(workload.loss, batch))), labels, CLASSES)


def _help() -> float:
    command = [sys.executable, "-m", "flows", "--help"]
    return median(_timed(lambda: subprocess.run(command, check=True, capture_output=True)) for _ in range(ROUNDS))


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
