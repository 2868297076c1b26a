"""How influence of points on each other behaves (arXiv 2406.00509): fine-tuning on one point, and EK-FAC beside it."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, fields
from pathlib import Path

import torch
from torch import Tensor, nn

from influence import EKFAC, Damping, Desiderata, Influence, desiderata, empirical_influence, features
from influence.blocks import available
from tests.proof.lds import interval
from tests.proof.lds_estimators import TASK
from tests.proof.lds_truth import Labelled
from tests.proof.table_tasks import TASKS, checkpoints, sets
from tests.proof.table_ways import batches

POINTS, RATE, NOISE = 200, 0.01, 0.1
PERCEPTRONS = ("digits", "mlp")


def section(folder: Path, seeds: int) -> list[str]:
    """The lines of the page."""
    names = [field.name for field in fields(Desiderata)]
    lines = [
        "## What influence is expected to be",
        "",
        f"{POINTS} train points on each other: one step of rate {RATE:g} on one point (float64), and EK-FAC.",
        "*Decay*: rank correlation of its size with the distance in the features before the head; *sparseness*: share",
        f"that the top tenth holds; *invariance*: rank correlation under noise of {NOISE:g} on the pixels; *symmetry*.",
        "",
        f"| | {' | '.join(names)} |",
        "|---" * (1 + len(names)) + "|",
    ]
    for task in PERCEPTRONS:
        found = [_kept(task, seed, folder) for seed in range(seeds)]
        for way in found[0]:
            row = [interval(getattr(one[way], name) for one in found) for name in names]
            lines.append(f"| {TASKS[task].title}, {way} | {' | '.join(row)} |")
    return [*lines, ""]


def _kept(task: str, seed: int, folder: Path) -> dict[str, Desiderata]:
    path = folder / f"desiderata-{task}-{seed}.json"
    if not path.exists():
        path.write_text(json.dumps({way: asdict(one) for way, one in _measure(task, seed).items()}))
    return {way: Desiderata(**one) for way, one in json.loads(path.read_text()).items()}


def _measure(task: str, seed: int) -> dict[str, Desiderata]:
    points = sets(task).points
    some = Labelled(points.inputs[:POINTS].double(), points.labels[:POINTS])
    drawn = torch.randn(some.inputs.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    noisy = Labelled(some.inputs + NOISE * drawn, some.labels)
    model = copy.deepcopy(checkpoints(task, points, seed)[-1]).double()
    assert isinstance(model, nn.Sequential)
    distances = torch.cdist(*[model[:-1](some.inputs)] * 2)
    every = Labelled(points.inputs.double(), points.labels)

    def fine_tuned(given: Labelled) -> Tensor:
        return empirical_influence(model, TASK, batches(given), batches(some), RATE)

    def ekfac(given: Labelled) -> Tensor:
        blocks = features(available(model))
        with Influence(model, TASK, EKFAC(blocks), blocks) as influence:
            influence.fit(batches(every), Damping("absolute", TASKS[task].recipe.weight_decay))
            return influence.pairs(batches(given), batches(some), own=False).influence

    ways = {"fine-tuning": fine_tuned, "EK-FAC": ekfac}
    return {name: desiderata(way(some), distances, way(noisy)) for name, way in ways.items()}
