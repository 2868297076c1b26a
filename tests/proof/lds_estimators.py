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
BATCH = 250
Batch = tuple[Tensor, Tensor]
TASK: Task[Batch] = Task(logits=lambda model, batch: model(batch[0]), labels=lambda batch: batch[1])


@dataclass(frozen=True)
class Estimator:
    """A curvature and its damping, which knows the recipe but not the truth."""

    curvature: Callable[[Blocks], Curvature]
    damping: Callable[[Recipe], Damping]


ESTIMATORS: Mapping[str, Estimator] = {
    "gradient dot": Estimator(Identity, lambda _: Damping("absolute", 1.0)),
    "EK-FAC": Estimator(EKFAC, lambda recipe: Damping("absolute", recipe.weight_decay)),
    "EK-FAC, a tenth of the damping": Estimator(EKFAC, lambda recipe: Damping("absolute", recipe.weight_decay / 10)),
    "dual GGN": Estimator(
        lambda blocks: DualGaussNewton(blocks, cut=CUT),
        lambda recipe: Damping("horizon", recipe.horizon(POINTS // 2), recipe.weight_decay),
    ),
}


def scores(task: str, seed: int) -> dict[str, Tensor]:
    """Influence by each estimator at each checkpoint of one model, [checkpoints, n, m]."""
    recipe, checkpoints = SETTINGS[task].recipe, base_models(task, seed)
    return {
        name: torch.stack([_pairs(task, layers, estimator, recipe) for layers in checkpoints])
        for name, estimator in ESTIMATORS.items()
    }


def _pairs(task: str, layers: Layers, estimator: Estimator, recipe: Recipe) -> Tensor:
    points, queries = (_batches(one) for one in data(task))
    model: nn.Module = module(layers, 0)
    blocks = linear_blocks(model)
    with Influence(model, TASK, estimator.curvature(blocks), blocks) as influence:
        influence.fit(points, estimator.damping(recipe))
        return influence.pairs(points, queries, own=False).influence


def _batches(points: Labelled) -> list[Batch]:
    return list(zip(points.inputs.split(BATCH), points.labels.split(BATCH), strict=True))
