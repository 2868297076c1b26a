"""What the LDS proof is about: two tasks, and the query losses of models trained on random halves of their points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from flows.validation.subsets import SPACING, draw_subsets
from flows.workloads.digits import Digits
from flows.workloads.fashion_mnist import FashionMnist
from flows.workloads.images import ImageSet, ImageWorkload
from tests.proof.lds_models import Layers, Recipe, losses, train

POINTS, QUERIES, SUBSETS, RETRAINS = 1000, 100, 100, 5
OWN = 32  # other halves, of one model each: what a user can afford to choose a damping by
SIDE_BY_SIDE = 10  # subsets whose models are trained together, and kept as one cell


@dataclass(frozen=True)
class Labelled:
    """Inputs [n, d] and labels [n]."""

    inputs: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Setting:
    """One task and recipe.

    Attributes:
        network: data and model.
        chosen: why this recipe, among those that docs/lds.md tells.
        workload: the data, labels clean, split by seed 0.
        recipe: of every model.
    """

    network: str
    chosen: str
    workload: Callable[[], ImageWorkload]
    recipe: Recipe


def fashion_mnist() -> ImageWorkload:
    """1,000 images with clean labels, and 100 of the test images as queries."""
    return FashionMnist(points=POINTS, queries=QUERIES, rate=0.0)


def digits() -> ImageWorkload:
    """1,000 digits with clean labels, and 100 others as queries."""
    return Digits(points=POINTS, queries=QUERIES, rate=0.0)


FASHION, DIGITS = "Fashion-MNIST MLP 784-64-32-10", "digits MLP 64-64-32-10"
SETTINGS = {
    "fashion-loss": Setting(FASHION, "least held-out loss", fashion_mnist, Recipe(0.05, 0.01, 30)),
    "fashion-accuracy": Setting(FASHION, "highest held-out accuracy", fashion_mnist, Recipe(0.1, 0.01, 60)),
    "fashion-light": Setting(FASHION, "little weight decay", fashion_mnist, Recipe(0.1, 0.001, 40)),
    "digits-loss": Setting(DIGITS, "least held-out loss", digits, Recipe(0.2, 0.001, 120)),
    "digits-accuracy": Setting(DIGITS, "highest held-out accuracy", digits, Recipe(0.2, 0.003, 120)),
}


@cache
def data(task: str) -> tuple[Labelled, Labelled]:
    """Train points and queries."""
    workload = SETTINGS[task].workload()
    return labelled(workload, workload.points()), labelled(workload, workload.queries())


def subsets() -> Tensor:
    """The random halves, [M, n], bool."""
    return draw_subsets(POINTS, SUBSETS, 0.5, seed=0)


def base_models(task: str, seed: int) -> list[Layers]:
    """The checkpoints of one model trained on all points."""
    points, _ = data(task)
    return train(SETTINGS[task].recipe, points.inputs, points.labels, torch.arange(POINTS)[None], [seed])


def truth(task: str, folder: Path) -> Tensor:
    """Query losses of all models on halves, [M, R, m]; what the folder holds is not trained again."""
    return torch.cat([_cell(task, first, folder) for first in range(0, SUBSETS, SIDE_BY_SIDE)])


def own_subsets() -> Tensor:
    """Halves that a user would train on to choose a damping, none of them among those that judge, [M, n], bool."""
    return draw_subsets(POINTS, OWN, 0.5, seed=1)


def own_truth(task: str, folder: Path) -> Tensor:
    """Query losses of one model on each of these, [M, 1, m]; kept like the others."""
    path = folder / f"{task}-own.pt"
    if not path.exists():
        seeds = [SPACING * (RETRAINS + 1) + number for number in range(OWN)]
        torch.save(_retrained(task, own_subsets(), seeds, 1), path)
    found: Tensor = torch.load(path)
    return found


def _cell(task: str, first: int, folder: Path) -> Tensor:
    path = folder / f"{task}-truth-{first}.pt"
    if not path.exists():
        numbers = range(first, first + SIDE_BY_SIDE)
        seeds = [SPACING * (turn + 1) + number for number in numbers for turn in range(RETRAINS)]
        torch.save(_retrained(task, subsets()[numbers.start : numbers.stop], seeds, RETRAINS), path)
        print(f"{task}: subsets {first} to {first + SIDE_BY_SIDE - 1} trained", flush=True)
    found: Tensor = torch.load(path)
    return found


def _retrained(task: str, halves: Tensor, seeds: Sequence[int], retrains: int) -> Tensor:
    """Query losses of the models of each half, [s, retrains, m]; seeds are in that order."""
    points, queries = data(task)
    members = torch.stack([row.nonzero()[:, 0] for row in halves]).repeat_interleave(retrains, dim=0)  # [.., n / 2]
    trained = train(SETTINGS[task].recipe, points.inputs, points.labels, members, seeds)
    found: Tensor = losses(trained[-1], queries.inputs, queries.labels).double().unflatten(0, (-1, retrains))
    return found


def labelled(workload: ImageWorkload, points: ImageSet) -> Labelled:
    """The points as tensors."""
    batch = points.batch_of(torch.arange(len(points)))
    return Labelled(workload.inputs(batch), batch[1])
