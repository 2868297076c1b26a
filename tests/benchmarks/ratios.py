"""Scoring against its floor, in one process: `python -m tests.benchmarks.ratios SETUP OUT`."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from influence import Fisher, spearman
from tests.benchmarks.floor import Work, floor_batch, forward_backward, in_turns
from tests.benchmarks.jobs import GIB, Job
from tests.benchmarks.rows import Row, write
from tests.benchmarks.setups import load

CUT = 0.8
HEAD = "head block fitted: all one-pass scores"
MEAN = "EK-FAC fitted: self + mean"
CHEAPER = "EK-FAC fitted: self + mean, basis cut"
TEN = "EK-FAC fitted: self + mean + 10 groups"
EXACT = "EK-FAC from nothing, exact expectation over labels"
SAMPLED = "EK-FAC from nothing, one sampled label"
FROM_NOTHING = {"mlp": 8.0, "cnn": 7.0, "transformer": 6.0}
TARGETS: dict[str, dict[str, float]] = {
    HEAD: {"mlp": 0.6, "cnn": 0.5},
    MEAN: {"mlp": 2.6, "cnn": 2.6, "transformer": 2.1},
    CHEAPER: {"mlp": 1.7},
    TEN: {"mlp": 6.0, "cnn": 3.0, "transformer": 2.2},
    EXACT: FROM_NOTHING,
    SAMPLED: FROM_NOTHING,
}
SIZES = {
    "mlp": (10_000, 1_000, 1024),
    "cnn": (10_000, 1_000, 128),
    "transformer": (256, 32, 16),
}  # points, queries, batch
KEPT = {"mlp": GIB, "cnn": 0, "transformer": GIB}  # bytes of factors: a CNN's patches are computed as fast as read
ROUNDS = {"mlp": 5, "cnn": 3, "transformer": 3}


def main() -> None:
    """Measure a setup and write its rows."""
    torch.set_num_threads(1)
    write(Path(sys.argv[2]), measure(sys.argv[1]))


def measure(name: str) -> list[Row]:
    """The rows of a setup."""
    points, queries, batch = SIZES[name]
    plain, *setups = (load(name).first(points, queries) for _ in range(4))  # an open engine freezes its model
    many = name == "transformer"  # a thousand labels, whose exact expectation would be as many backward passes
    fisher = Fisher("sampled") if many else Fisher()
    job, cut, last = (Job(setup, batch, fisher, share) for setup, share in zip(setups, (None, CUT, None)))
    floor = floor_batch(plain)
    kept: dict[str, Tensor] = {}
    works: dict[str, Work] = {"floor": lambda: forward_backward(plain, floor)}
    works[SAMPLED] = partial(Job(last.setup, batch, Fisher("sampled")).from_nothing, KEPT[name], 8 * KEPT[name])
    if not many:
        works[EXACT] = partial(last.from_nothing, KEPT[name], 8 * KEPT[name])
    with ExitStack() as engines:
        full = engines.enter_context(job.fitted())
        works[HEAD] = engines.enter_context(last.head())
        works[MEAN] = lambda: kept.update({MEAN: job.means(full).own.self_influence})
        works[TEN] = lambda: job.groups(full)
        if name in TARGETS[CHEAPER]:
            cheaper = engines.enter_context(cut.fitted())
            works[CHEAPER] = lambda: kept.update({CHEAPER: cut.means(cheaper).own.self_influence})
        seconds = in_turns(works, ROUNDS[name])
    on = f"{name}, {points:,} x {queries:,}"
    said = f"{seconds['floor']:.3g} s at batch {floor}, ours at batch {batch}"
    notes = {what: f"; {_agreement(kept[MEAN], found)}" for what, found in kept.items() if what == CHEAPER}
    return [
        Row(what, on, seconds[what] / seconds["floor"], "x floor", targets.get(name), said + notes.get(what, ""))
        for what, targets in TARGETS.items()
        if what in seconds
    ]


def _agreement(full: Tensor, cut: Tensor) -> str:
    return f"{CUT} of the trace, Spearman of self-influence with the full basis {spearman(full, cut):.5f}"


if __name__ == "__main__":
    main()
