"""The rows that need a training of their own, or that are no curvature of the last model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from flows.workloads.images import perceptron
from influence import EKFAC, Damping, Influence, Reader, features, materialise
from influence.blocks import available
from influence.empirical import empirical_influence
from influence.trajectory import Trajectory
from influence.turnover import TurnOver, turn_over_influence, turn_over_self_influence
from influence.unrolling import Segment, unroll, unrolled_influence
from tests.left_out.ignoring import ignoring_influence
from tests.proof.lds_estimators import TASK
from tests.proof.lds_models import CLASSES, HIDDEN, MOMENTUM
from tests.proof.lds_truth import POINTS
from tests.proof.table_models import train_one
from tests.proof.table_tasks import TASKS
from tests.proof.table_ways import Case, Found, batches, decay

FAMILIES = 4  # of masks, a training each
EVERY = torch.arange(POINTS)


def network(case: Case) -> Callable[[], nn.Module]:
    """Of the task."""
    width = case.points.inputs.shape[1]
    return TASKS[case.task].network or (lambda: nn.Sequential(*perceptron(width, *HIDDEN, CLASSES)))


def data_values(case: Case, multiples: Sequence[float], own: bool) -> list[Found]:
    """Leave-one-out of one step each, along the second half of a training that is recorded."""
    recorded: list[Trajectory[tuple[Tensor, Tensor]]] = []
    half = case.recipe.rates(POINTS)[len(case.recipe.rates(POINTS)) // 2]

    @contextmanager
    def around(model: nn.Module, inputs: Tensor, rows: Tensor, rate: float) -> Iterator[None]:
        if not recorded:
            reader = Reader(model, TASK, features(available(model)))
            recorded.append(Trajectory(reader, MOMENTUM, case.recipe.weight_decay))
        if rate <= half:
            recorded[0].record((inputs, case.points.labels[rows]), rows, rate)
        yield

    _trained(case, case.seed, around)
    return [Found(recorded[0].influence(batches(case.queries), POINTS).double(), None)]


def segmented(case: Case, multiples: Sequence[float], own: bool) -> list[Found]:
    """SOURCE with a segment for each checkpoint."""
    rates = case.recipe.rates(POINTS)
    quarter = len(rates) // 4
    segments, factors = [], []
    for number, model in enumerate(case.checkpoints):
        blocks = features(available(model))
        curvature = EKFAC(blocks)
        with Influence(model, TASK, curvature, blocks) as influence:
            influence.fit(batches(case.points), Damping("absolute", decay(case.recipe)))
        with Reader(model, TASK, blocks) as reader:
            factors.append([reader.losses(batch).losses for batch in batches(case.points)])
        horizon = sum(rates[number * quarter : (number + 1) * quarter]) / (1 - MOMENTUM)
        segments.append(Segment(curvature, horizon))
    met = unroll(segments, _loss_gradients(case), case.recipe.weight_decay)
    parts = [unrolled_influence([[inside] for inside in some], met, POINTS) for some in zip(*factors, strict=True)]
    return [Found(torch.cat(parts), None)]


def turned_over(case: Case, multiples: Sequence[float], own: bool) -> list[Found]:
    """Turn-over dropout on every hidden layer, several families of masks."""
    layers, pairs, selves = _hidden(network(case)()), [], []
    for family in range(FAMILIES):
        layers = _hidden(network(case)())

        def around(
            model: nn.Module,
            inputs: Tensor,
            rows: Tensor,
            rate: float,
            family: int = family,
            layers: Sequence[str] = layers,
        ) -> AbstractContextManager[None]:
            return TurnOver(model, layers, family).own(rows)

        model = _trained(case, FAMILIES * case.seed + family, around)
        pairs.append(turn_over_influence(model, TASK, layers, EVERY, batches(case.queries), family))
        if own:
            selves.append(turn_over_self_influence(model, TASK, layers, EVERY, batches(case.points), family))
    return [Found(torch.stack(pairs).mean(0).double(), torch.stack(selves).mean(0).double() if own else None)]


def ignored(case: Case, multiples: Sequence[float], own: bool) -> list[Found]:
    """One bilevel step of the recipe's first learning rate."""
    model = copy.deepcopy(case.checkpoints[-1]).requires_grad_(True)
    groups = torch.arange(len(case.queries.labels))
    found = ignoring_influence(
        model, TASK, features(available(model)), batches(case.points), batches(case.queries), groups, case.recipe.rate
    )
    return [Found(found, None)]


def fine_tuned(case: Case, multiples: Sequence[float], own: bool) -> list[Found]:
    """Ten steps on each point alone, of a tenth of the recipe's first learning rate."""
    found = empirical_influence(
        case.checkpoints[-1], TASK, batches(case.points), batches(case.queries), case.recipe.rate / 10, steps=10
    )
    return [Found(found.double(), None)]


def _trained(
    case: Case, seed: int, around: Callable[[nn.Module, Tensor, Tensor, float], AbstractContextManager[object]]
) -> nn.Module:
    points = case.points
    return train_one(network(case), case.recipe, points.inputs, points.labels, EVERY, seed, around)[-1]


def _hidden(model: nn.Module) -> list[str]:
    """Linear and convolutional layers but the head; of attention, what it adds to the tokens."""
    return [block.name for block in features(available(model))[:-1] if not block.name.endswith(("qkv", "embedding"))]


def _loss_gradients(case: Case) -> dict[str, Tensor]:
    """Of every query, by the last model, name -> [m, o, i]."""
    model = case.checkpoints[-1]
    with Reader(model, TASK, features(available(model))) as reader:
        parts = [reader.losses(batch).losses for batch in batches(case.queries)]
    return {name: torch.cat([materialise(part[name]) for part in parts]) for name in parts[0]}
