"""Ours and theirs on one setup, in turns: `python -m tests.benchmarks.against SETUP OUT`, in the peers' interpreter.

kronfluence is compared on the empirical Fisher, which needs no sampling and on which both give the same numbers;
pyDVL's Fisher is its own. Damping and blocks are the same.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import torch

from influence import Fisher, pearson, spearman
from tests.benchmarks.floor import Work, in_turns
from tests.benchmarks.jobs import DAMPING, Job
from tests.benchmarks.memory import peak
from tests.benchmarks.peers import Scores, kronfluence, pydvl
from tests.benchmarks.rows import Row, write
from tests.benchmarks.setups import load

SIZES = {  # train points, queries, our batch, theirs
    "mlp": (1_000, 100, 256, 256),
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
    kept: dict[str, Scores] = {}
    works: dict[str, Work] = {
        "ours": lambda: kept.update(ours=_pairs(job)),
        "theirs": lambda: kept.update(theirs=kronfluence(setup, DAMPING.value, theirs)),
    }
    seconds = in_turns(works, rounds=1)
    memory = [
        peak("pairs", name, points, queries, ours),
        peak("kronfluence", name, points, queries, theirs),
    ]
    said = f"empirical Fisher; {_agreement(kept['ours'], kept['theirs'])}"
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
    kept: dict[str, Scores] = {}
    works: dict[str, Work] = {
        "ours": lambda: kept.update(ours=Scores(job.pairs(own=False).influence, None)),
        "theirs": lambda: kept.update(theirs=pydvl(setup, DAMPING.value, len(setup.train))),
    }
    seconds = in_turns(works, rounds=5)
    return [
        Row(
            "fit + pairs", "784-64-32-10, 1,000 x 100", seconds["ours"] / seconds["theirs"],
            f"x pyDVL {version('pyDVL')}", 1 / 5,
            f"{seconds['ours']:.3g} s, {seconds['theirs']:.3g} s; exact Fisher here, pyDVL's own there; "
            f"{_agreement(kept['ours'], kept['theirs'])}",
        )
    ]  # fmt: skip


def _pairs(job: Job) -> Scores:
    found = job.pairs()
    return Scores(found.influence, found.self_influence)


def _agreement(ours: Scores, theirs: Scores) -> str:
    a, b = ours.pairs.flatten(), theirs.pairs.flatten().to(ours.pairs)
    said = f"Spearman {spearman(a, b):.6f}, Pearson {pearson(a, b):.6f}"
    if ours.own is None or theirs.own is None:
        return said
    return f"{said}, of self-influence Spearman {spearman(ours.own, theirs.own.to(ours.own)):.6f}"


if __name__ == "__main__":
    main()
