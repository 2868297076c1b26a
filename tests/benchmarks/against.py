"""Ours and theirs on one setup, in turns: `python -m tests.benchmarks.against SETUP OUT`, in the peers' interpreter.

kronfluence is compared on the empirical Fisher, which needs no sampling and on which both give the same numbers;
pyDVL's Fisher is its own. Damping and blocks are the same.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from influence import Fisher, pearson, spearman
from tests.benchmarks.floor import in_turns
from tests.benchmarks.jobs import DAMPING, Job
from tests.benchmarks.memory import peak
from tests.benchmarks.peers import kronfluence, pydvl
from tests.benchmarks.rows import Row, write
from tests.benchmarks.setups import load

SIZES = {  # train points, queries, our batch, theirs
    "mlp": (2_000, 100, 256, 256),
    "cnn": (1_000, 50, 64, 64),
    "transformer": (256, 32, 16, 16),
}
TARGETS = {"mlp": (1 / 8, 1 / 2), "cnn": (1 / 8, 1 / 2), "transformer": (1 / 3, 1.0)}


def main() -> None:
    """Compare on a setup and write its rows."""
    torch.set_num_threads(1)
    name = sys.argv[1]
    write(Path(sys.argv[2]), against_pydvl() if name == "pairwise" else against_kronfluence(name))


def against_kronfluence(name: str) -> list[Row]:
    """CPU seconds and peak memory of fit, pairs and self-influence."""
    points, queries, ours, theirs = SIZES[name]
    setup = load(name).first(points, queries)
    job = Job(setup, ours, Fisher("empirical"))
    seconds = in_turns({"ours": job.pairs, "theirs": lambda: kronfluence(setup, DAMPING.value, theirs)}, rounds=1)
    found, other = job.pairs(), kronfluence(setup, DAMPING.value, theirs)
    memory = [
        peak("pairs", name, points, queries, ours),
        peak("kronfluence", name, points, queries, theirs),
    ]
    said = f"empirical Fisher; {_agreement(found.influence, other.pairs)}, "
    said += f"self-influence {spearman(found.self_influence, other.own.double()):.6f}"
    on = f"{name}, {points:,} x {queries:,}"
    peer = f"kronfluence {version('kronfluence')}"
    return [
        Row(
            "fit + pairs + self", on, seconds["ours"] / seconds["theirs"], f"x {peer}", TARGETS[name][0],
            f"{seconds['ours']:.3g} s at batch {ours}, {seconds['theirs']:.3g} s at batch {theirs}; {said}",
        ),
        Row(
            "its peak memory", on, memory[0] / memory[1], f"x {peer}", TARGETS[name][1],
            f"{memory[0]:.0f} MB, {memory[1]:.0f} MB",
        ),
    ]  # fmt: skip


def against_pydvl() -> list[Row]:
    """CPU seconds of fit and pairs on the small MLP."""
    setup = load("pairwise")
    job = Job(setup, 256, Fisher())
    works = {"ours": job.pairs, "theirs": lambda: pydvl(setup, DAMPING.value, len(setup.train))}
    seconds = in_turns(works, rounds=3)
    agreement = _agreement(job.pairs().influence, works["theirs"]().pairs)
    return [
        Row(
            "fit + pairs", "784-64-32-10, 1,000 x 100", seconds["ours"] / seconds["theirs"],
            f"x pyDVL {version('pyDVL')}", 1 / 5,
            f"{seconds['ours']:.3g} s with self-influence, {seconds['theirs']:.3g} s without; exact Fisher here, "
            f"pyDVL's own there; {agreement}",
        )
    ]  # fmt: skip


def _agreement(ours: Tensor, theirs: Tensor) -> str:
    a, b = ours.flatten(), theirs.flatten().to(ours)
    return f"Spearman {spearman(a, b):.6f}, Pearson {pearson(a, b):.6f}"


if __name__ == "__main__":
    main()
