"""How well the proxies of memorization rank points, in one setting with one seed, against models trained on subsets."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from flows.validation.subsets import SPACING, draw_subsets
from flows.workloads.digits import Digits
from flows.workloads.fashion_mnist import FashionMnist
from flows.workloads.images import ImageWorkload
from influence import EKFAC, Damping, Influence, cheap_signals, grand, linear_blocks, spearman
from influence.learning import learning_signals
from influence.oracle import subset_memorization
from influence.proxies import held_out_retrain, loss_curvature
from influence.reader import Reader
from tests.proof.lds_estimators import TASK, Batch
from tests.proof.lds_models import BATCH, MOMENTUM, Recipe, losses, module, train
from tests.proof.lds_truth import Labelled, labelled

POINTS, HELD_OUT = 1000, 300
MODELS, SHARE = 200, 0.7
RATES = (0.0, 0.1)  # of the labels are flipped
SIDE_BY_SIDE = 50  # models
LAST, ALL = "last", "all"


@dataclass(frozen=True)
class Task:
    """Data by rate of flips and seed, network and recipe."""

    network: str
    workload: Callable[[float, int], ImageWorkload]
    recipe: Recipe


TASKS = {
    "digits": Task(
        "digits MLP 64-64-32-10",
        lambda rate, seed: Digits(rate=rate, seed=seed, points=POINTS, queries=HELD_OUT),
        Recipe(0.2, 0.001, 120),
    ),
    "fashion": Task(
        "Fashion-MNIST MLP 784-64-32-10",
        lambda rate, seed: FashionMnist(points=POINTS, queries=HELD_OUT, rate=rate, seed=seed),
        Recipe(0.05, 0.01, 30),
    ),
}


@dataclass(frozen=True)
class Cell:
    """What was measured.

    Attributes:
        spearman: of each signal with the oracle, by signal, then of the last checkpoint and of all.
        ceiling: what the oracle's own expectation would reach.
        memorization: median over the points, as a probability.
        seconds: of CPU.
    """

    spearman: dict[str, dict[str, float]]
    ceiling: float
    memorization: float
    seconds: float


def measure(task: str, rate: float, seed: int) -> Cell:
    """Measure one setting with the seed of the split, the planted errors, the subsets and the training."""
    started, recipe, workload = time.process_time(), TASKS[task].recipe, TASKS[task].workload(rate, seed)
    points, held_out = labelled(workload, workload.points()), labelled(workload, workload.queries())
    oracle, ceiling = _oracle(recipe, points, seed)
    checkpoints = train(recipe, points.inputs, points.labels, torch.arange(POINTS)[None], [seed])
    models = [module(layers, 0) for layers in checkpoints]
    found = {LAST: _signals(recipe, points, models[-1:]), ALL: _signals(recipe, points, models)}
    found[LAST]["held-out retrain"] = _retrained(recipe, points, held_out, models[-1], seed)
    names = dict.fromkeys(name for signals in found.values() for name in signals)
    return Cell(
        {name: {way: spearman(found[way][name], oracle) for way in found if name in found[way]} for name in names},
        ceiling,
        float(oracle.median()),
        time.process_time() - started,
    )


def _oracle(recipe: Recipe, points: Labelled, seed: int) -> tuple[Tensor, float]:
    """Memorization [n] as the probability of the given label, and the rank correlation that its noise allows."""
    subsets, outcomes = draw_subsets(POINTS, MODELS, SHARE, seed), []
    for first in range(0, MODELS, SIDE_BY_SIDE):
        members = torch.stack([row.nonzero()[:, 0] for row in subsets[first : first + SIDE_BY_SIDE]])
        seeds = [SPACING * (seed + 1) + first + number for number in range(len(members))]
        trained = train(recipe, points.inputs, points.labels, members, seeds)[-1]
        outcomes.append(losses(trained, points.inputs, points.labels).neg().exp())
    probabilities = torch.cat(outcomes)  # [M, n]
    halves = [subset_memorization(subsets[part::2], probabilities[part::2]).effect for part in (0, 1)]
    agreement = spearman(*halves)
    whole = 2 * agreement / (1 + agreement)  # Spearman and Brown: of twice as many models
    return subset_memorization(subsets, probabilities).effect, whole**0.5


def _signals(recipe: Recipe, points: Labelled, models: Sequence[nn.Module]) -> dict[str, Tensor]:
    """Means over the models, [n] each, larger = more memorized."""
    with torch.no_grad():
        logits = torch.stack([model(points.inputs) for model in models])  # [K, n, C]
    learned = learning_signals(logits, points.labels)
    cheap = [cheap_signals(one, points.labels) for one in logits]
    return {
        "self-influence": _mean([_self_influence(recipe, points, model) for model in models]),
        "loss": _mean([one.loss for one in cheap]),
        "EL2N": _mean([one.el2n for one in cheap]),
        "GraNd": _mean([_gradient_norms(points, model) for model in models]),
        "1 - confidence": 1 - learned.confidence,
        "1 - largest probability": 1 - learned.max_probability,
        "entropy": learned.entropy,
        "1 - accuracy": 1 - learned.accuracy,
        "loss curvature": _mean([_curvature(points, model) for model in models]),
    }


def _mean(signals: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(signals)).double().mean(0)


def _self_influence(recipe: Recipe, points: Labelled, model: nn.Module) -> Tensor:
    """EK-FAC, damping = weight decay."""
    blocks, batches = linear_blocks(model), _batches(points)
    with Influence(model, TASK, EKFAC(blocks), blocks) as influence:
        influence.fit(batches, Damping("absolute", recipe.weight_decay))
        return influence.pairs(batches, batches[:1]).self_influence


def _gradient_norms(points: Labelled, model: nn.Module) -> Tensor:
    with Reader(model, TASK, linear_blocks(model)) as reader:
        return torch.cat([grand(reader.losses(batch).losses) for batch in _batches(points)])


def _curvature(points: Labelled, model: nn.Module) -> Tensor:
    return loss_curvature(lambda x: cross_entropy(model(x), points.labels, reduction="none"), points.inputs)


def _retrained(recipe: Recipe, points: Labelled, held_out: Labelled, model: nn.Module, seed: int) -> Tensor:
    """After the recipe once more, from the trained model, on held-out points alone."""
    with torch.no_grad():
        before = model(points.inputs)
    solver = torch.optim.SGD(model.parameters(), recipe.rate, MOMENTUM, weight_decay=recipe.weight_decay)
    rates, draws = iter(recipe.rates(HELD_OUT)), torch.Generator().manual_seed(seed)
    for _ in range(recipe.epochs):
        for rows in torch.randperm(HELD_OUT, generator=draws).split(BATCH):
            solver.param_groups[0]["lr"] = next(rates)
            solver.zero_grad()
            cross_entropy(model(held_out.inputs[rows]), held_out.labels[rows]).backward()
            solver.step()
    with torch.no_grad():
        return held_out_retrain(before, model(points.inputs))


def _batches(points: Labelled) -> list[Batch]:
    return list(zip(points.inputs.split(250), points.labels.split(250), strict=True))


def kept(task: str, rate: float, seed: int, folder: Path) -> Cell:
    """The measurement of a cell; not made again if the folder holds it."""
    path = folder / f"{task}-{rate:g}-{seed}.json"
    if not path.exists():
        path.write_text(json.dumps(asdict(measure(task, rate, seed)), indent=1))
        print(f"{path.stem} measured", flush=True)
    return Cell(**json.loads(path.read_text()))
