"""The estimators of the LDS proof on one model: what each says at every checkpoint, through the public engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from influence import EKFAC, Blocks, Curvature, Damping, DualGaussNewton, Identity, Influence, Task, linear_blocks
from tests.proof.lds_models import Layers, Recipe, module
from tests.proof.lds_truth import POINTS, SETTINGS, Labelled, base_models, data

CUT = 1e-3  # share of the trace that the dual leaves out: of 10 roots a point, 2 to 5 remain
OTHERS = (3.0, 0.3, 0.1, 0.03)
BATCH = 250
Batch = tuple[Tensor, Tensor]
TASK: Task[Batch] = Task(logits=lambda model, batch: model(batch[0]), labels=lambda batch: batch[1])


@dataclass(frozen=True)
class Estimator:
    """A curvature and its damping.

    Attributes:
        curvature: on some blocks.
        damping: as the recipe says it.
        others: times this, among which a user may choose.
    """

    curvature: Callable[[Blocks], Curvature]
    damping: Callable[[Recipe], float]
    others: tuple[float, ...] = ()

    def dampings(self, recipe: Recipe) -> list[float]:
        """The recipe's first."""
        return [self.damping(recipe) * times for times in (1.0, *self.others)]


ESTIMATORS: Mapping[str, Estimator] = {
    "gradient dot": Estimator(Identity, lambda _: 1.0),
    "EK-FAC": Estimator(EKFAC, lambda recipe: recipe.weight_decay, OTHERS),
    "dual GGN": Estimator(
        lambda blocks: DualGaussNewton(blocks, cut=CUT),
        lambda recipe: 1 / recipe.horizon(POINTS // 2) + recipe.weight_decay,
        OTHERS,
    ),
}


def scores(task: str, seed: int) -> dict[str, Tensor]:
    """Influence by each estimator with each damping at each checkpoint of one model, [dampings, checkpoints, n, m]."""
    recipe, checkpoints = SETTINGS[task].recipe, base_models(task, seed)
    return {
        name: torch.stack([_pairs(task, layers, estimator, recipe) for layers in checkpoints], 1)
        for name, estimator in ESTIMATORS.items()
    }


def _pairs(task: str, layers: Layers, estimator: Estimator, recipe: Recipe) -> Tensor:
    """[dampings, n, m]."""
    points, queries = (_batches(one) for one in data(task))
    model: nn.Module = module(layers, 0)
    blocks, found = linear_blocks(model), []
    first, *others = (Damping("absolute", value) for value in estimator.dampings(recipe))
    with Influence(model, TASK, estimator.curvature(blocks), blocks) as influence:
        influence.fit(points, first)
        found.append(influence.pairs(points, queries, own=False).influence)
        for damping in others:
            influence.curvature.finish(damping)
            found.append(influence.pairs(points, queries, own=False).influence)
    return torch.stack(found)


def _batches(points: Labelled) -> list[Batch]:
    return list(zip(points.inputs.split(BATCH), points.labels.split(BATCH), strict=True))
