"""Where the truth is known: softmax regression on digits, every score against exact refits without the point.

`python -m tests.benchmarks.convex OUT`, in the peers' interpreter. Everything is float64 on both sides.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from influence import EKFAC, PCG, Damping, Fisher, GaussNewton, Influence, pearson
from influence.convex import minimise
from influence.curvature.base import Curvature
from tests.benchmarks.floor import in_turns
from tests.benchmarks.jobs import TASK, Job
from tests.benchmarks.peers import pydvl_cg, pydvl_direct
from tests.benchmarks.rows import Row, write
from tests.benchmarks.setups import Data, Setup, losses

RIDGE = 0.01
POINTS, QUERIES = 1_000, 200
REFITS = 100  # points that are left out for the truth, evenly spaced
TOLERANCE = 1e-6  # of both conjugate gradients


def main() -> None:
    """Measure and write the rows."""
    torch.set_num_threads(1)
    write(Path(sys.argv[1]), measure())


def measure() -> list[Row]:
    """CPU seconds of each pair of solvers, and what their scores are worth."""
    setup = regression()
    blocks = Job(setup, POINTS, Fisher()).blocks
    works: dict[str, Callable[[], Tensor]] = {
        "dense": lambda: pairs(setup, GaussNewton(blocks)),
        "direct": lambda: pydvl_direct(setup, RIDGE).pairs,
        "PCG": lambda: pairs(setup, PCG(blocks, EKFAC(blocks), tolerance=TOLERANCE)),
        "CG": lambda: pydvl_cg(setup, RIDGE, TOLERANCE).pairs,
    }
    seconds = in_turns(works, rounds=5)
    left_out = torch.arange(0, POINTS, POINTS // REFITS)
    truth = refitted(setup, left_out)
    worth = {name: pearson(work()[left_out].flatten(), truth.flatten()) for name, work in works.items()}
    return [_row(ours, theirs, seconds, worth) for ours, theirs in (("dense", "direct"), ("PCG", "CG"))]


def regression() -> Setup:
    """At the minimum of the regularised mean loss."""
    digits = load_digits()
    inputs, labels = torch.tensor(digits.data / 16), torch.tensor(digits.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, queries = order[:POINTS], order[POINTS : POINTS + QUERIES]
    model = nn.Sequential(nn.Linear(64, 10, dtype=torch.float64))
    setup = Setup("digits", model, Data(inputs[train], labels[train]), Data(inputs[queries], labels[queries]))
    minimise(model, lambda: losses(model, (setup.train.inputs, setup.train.labels)), RIDGE)
    return setup


def refitted(setup: Setup, left_out: Tensor) -> Tensor:
    """Rise of every query's loss when the model is refitted without each of these points, [b, m]."""
    train, queries = (setup.train.inputs, setup.train.labels), (setup.queries.inputs, setup.queries.labels)
    rises = []
    for point in left_out.tolist():
        model = copy.deepcopy(setup.model)
        minimise(model, lambda model=model: losses(model, train), RIDGE, left_out=point)
        with torch.no_grad():
            rises.append(losses(model, queries) - losses(setup.model, queries))
    return torch.stack(rises)


def pairs(setup: Setup, curvature: Curvature) -> Tensor:
    """Influence of every train point on every query, [n, m]."""
    job = Job(setup, POINTS, Fisher())
    with Influence(setup.model, TASK, curvature, job.blocks) as influence:
        influence.fit(job.train, Damping("absolute", RIDGE))
        return influence.pairs(job.train, job.queries, own=False).influence


def _row(ours: str, theirs: str, seconds: dict[str, float], worth: dict[str, float]) -> Row:
    return Row(
        f"exact scores: {ours}", f"digits softmax regression, {POINTS:,} x {QUERIES:,}",
        seconds[ours] / seconds[theirs], f"x pyDVL {version('pyDVL')} {theirs}", 1.0,
        f"{seconds[ours]:.3g} s, {seconds[theirs]:.3g} s; Pearson with exact leave-one-out of {REFITS} points "
        f"{worth[ours]:.5f} (at least .999), theirs {worth[theirs]:.5f}",
    )  # fmt: skip


if __name__ == "__main__":
    main()
