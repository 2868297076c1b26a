"""The tasks of the estimators' tables: data, network, recipe, and what retraining says of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from flows.validation.subsets import SPACING
from flows.workloads.images import ImageWorkload
from tests.proof.lds_models import CLASSES, Recipe, module, train
from tests.proof.lds_truth import (
    POINTS,
    RETRAINS,
    SETTINGS,
    SUBSETS,
    Labelled,
    digits,
    fashion_mnist,
    labelled,
    own_subsets,
    own_truth,
    subsets,
    truth,
)
from tests.proof.table_models import Rows, cnn, said, train_one

FLIPPED = 0.1  # of the points


@dataclass(frozen=True)
class Task:
    """One table.

    Attributes:
        title: data and network.
        workload: the data, labels clean, split by seed 0.
        recipe: of every model.
        network: None for the perceptron, whose models are trained side by side.
        retrains: models of each half.
        settled: name of the same task in the LDS proof, whose halves are retrained already.
    """

    title: str
    workload: Callable[[], ImageWorkload]
    recipe: Recipe
    network: Callable[[], nn.Module] | None = None
    retrains: int = RETRAINS
    settled: str = ""


TASKS = {
    "digits": Task("digits, MLP 64-64-32-10", digits, SETTINGS["digits-accuracy"].recipe, settled="digits-accuracy"),
    "mlp": Task(
        "Fashion-MNIST, MLP 784-64-32-10", fashion_mnist, SETTINGS["fashion-loss"].recipe, settled="fashion-loss"
    ),
    "cnn": Task("Fashion-MNIST, CNN (16 and 32 channels, 64)", fashion_mnist, Recipe(0.05, 0.02, 40), cnn, retrains=3),
    "transformer": Task(
        "Fashion-MNIST as 28 row tokens, transformer (2 layers of 32)",
        fashion_mnist,
        Recipe(0.05, 0.003, 40),
        Rows,
        retrains=2,
    ),
}


@dataclass(frozen=True)
class Sets:
    """Train points, queries and clean test points."""

    points: Labelled
    queries: Labelled
    test: Labelled


@cache
def sets(name: str) -> Sets:
    """Of a task, labels clean."""
    workload = TASKS[name].workload()
    return Sets(*(labelled(workload, one) for one in (workload.points(), workload.queries(), workload.holdout())))


def with_flips(clean: Sets, seed: int) -> tuple[Sets, Tensor]:
    """The same with a tenth of the labels changed, uniformly, and which those are, [n]."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(POINTS, generator=generator)[: round(FLIPPED * POINTS)]
    labels = clean.points.labels.clone()
    labels[rows] = (labels[rows] + torch.randint(1, CLASSES, (len(rows),), generator=generator)) % CLASSES
    return replace(clean, points=Labelled(clean.points.inputs, labels)), labels != clean.points.labels


def fit(
    name: str, points: Labelled, members: Tensor, seeds: Sequence[int], epochs: int | None = None
) -> list[list[nn.Module]]:
    """Train models on their own points.

    Args:
        name: of the task.
        points: all of them.
        members: rows of the points of each model, [M, k].
        seeds: [M].
        epochs: other than the recipe's.

    Returns:
        Of each model, its four checkpoints.
    """
    task = TASKS[name]
    recipe = replace(task.recipe, epochs=epochs or task.recipe.epochs)
    if task.network is None:
        saved = train(recipe, points.inputs, points.labels, members, seeds)
        return [
            [module(layers, number).eval().requires_grad_(False) for layers in saved] for number in range(len(seeds))
        ]
    return [
        train_one(task.network, recipe, points.inputs, points.labels, rows, seed)
        for rows, seed in zip(members, seeds, strict=True)
    ]


def checkpoints(name: str, points: Labelled, seed: int) -> list[nn.Module]:
    """Of one model trained on all points."""
    return fit(name, points, torch.arange(POINTS)[None], [seed])[0]


def judges(name: str, folder: Path, settled: Path) -> Tensor:
    """Query losses of the models on the halves that judge, [SUBSETS, retrains, m].

    Args:
        name: of the task.
        folder: keeps what is retrained.
        settled: holds what the LDS proof has retrained.
    """
    task = TASKS[name]
    if task.settled:
        return truth(task.settled, settled)
    return torch.cat([_half(name, number, half, folder, "truth") for number, half in enumerate(subsets())])


def owners(name: str, folder: Path, settled: Path) -> Tensor:
    """Query losses of one model on each of the halves that choose a damping, [OWN, m]."""
    task = TASKS[name]
    if task.settled:
        return own_truth(task.settled, settled)[:, 0]
    return torch.cat([_half(name, SUBSETS + number, half, folder, "own") for number, half in enumerate(own_subsets())])[
        :, 0
    ]


def _half(name: str, number: int, half: Tensor, folder: Path, role: str) -> Tensor:
    """[1, retrains, m]; of a half that chooses, one model."""
    path = folder / f"{name}-{role}-{number}.pt"
    if not path.exists():
        turns = TASKS[name].retrains if role == "truth" else 1
        rows = half.nonzero()[:, 0].repeat(turns, 1)
        trained = fit(name, sets(name).points, rows, [SPACING * (turn + 1) + number for turn in range(turns)])
        torch.save(losses([models[-1] for models in trained], sets(name).queries)[None], path)
    found: Tensor = torch.load(path)
    return found


def losses(models: Sequence[nn.Module], points: Labelled) -> Tensor:
    """Of every model on every point, [M, m], float64."""
    logits = said(models, points.inputs)
    return cross_entropy(logits.mT, points.labels.expand(logits.shape[:2]), reduction="none").double()


def accuracy(models: Sequence[nn.Module], points: Labelled) -> float:
    """Mean over models."""
    return float((said(models, points.inputs).argmax(2) == points.labels).float().mean())
