"""What a row of the estimators' tables does: from one model's checkpoints to the influence of every pair."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from influence import (
    KFAC,
    Blocks,
    Curvature,
    Damping,
    Fisher,
    Identity,
    Influence,
    features,
    head,
    over_checkpoints,
)
from influence.blocks import available
from influence.compression import Compressor
from tests.proof.lds_estimators import BATCH, TASK, Batch
from tests.proof.lds_models import Recipe
from tests.proof.lds_truth import POINTS, Labelled

MULTIPLES = (1.0, 10.0, 3.0, 0.3, 0.1)
"""Of the damping that the recipe says, which comes first: what 32 halves of one's own choose among."""
ALONE = (1.0,)
"""For a row without damping, or one that is too dear to be run five times."""


@dataclass(frozen=True)
class Case:
    """One model and what it is asked about.

    Attributes:
        task: name.
        recipe: of its training.
        checkpoints: after 25, 50, 75 and 100 % of its steps.
        points: with the labels it was given.
        queries: clean.
        seed: of its training.
    """

    task: str
    recipe: Recipe
    checkpoints: Sequence[nn.Module]
    points: Labelled
    queries: Labelled
    seed: int


@dataclass(frozen=True)
class Found:
    """Influence of every point on every query [n, m], and on itself [n] where the row says it."""

    pairs: Tensor
    own: Tensor | None


Score = Callable[[Case, Sequence[float], bool], list[Found]]
"""Of a case, with each of some multiples of the damping, and with or without self-influence."""


@dataclass(frozen=True)
class Way:
    """A row.

    Attributes:
        score: what it does.
        multiples: of its damping that may be chosen among; one where it has none.
        lds_alone: whether nothing else is measured.
    """

    score: Score
    multiples: tuple[float, ...] = MULTIPLES
    lds_alone: bool = False


def horizon(recipe: Recipe) -> float:
    """The damping of an exact Gauss-Newton matrix, from training on half of the points."""
    return 1 / recipe.horizon(POINTS // 2) + recipe.weight_decay


def decay(recipe: Recipe) -> float:
    """The damping of a Kronecker-factored one."""
    return recipe.weight_decay


@dataclass(frozen=True)
class Engine:
    """Through the public engine.

    Attributes:
        curvature: on the blocks, compressed ones if there is a compressor.
        damping: as the recipe says it.
        compress: from the blocks of a model and the case; None: not at all.
        checkpoints: the last ones, how many.
        rates: whether checkpoints are weighted by their learning rates.
        fisher: roots that the curvature is fitted on.
        only_head: whether the head is the only block.
        masks: how many compressors are drawn at every checkpoint, whose scores are averaged.
    """

    curvature: Callable[[Blocks], Curvature]
    damping: Callable[[Recipe], float]
    compress: Callable[[Blocks, Case, nn.Module, int], Compressor] | None = None
    checkpoints: int = 1
    rates: bool = False
    fisher: Fisher = field(default_factory=Fisher)
    only_head: bool = False
    masks: int = 1

    def __call__(self, case: Case, multiples: Sequence[float], own: bool) -> list[Found]:
        """Score every pair under each damping."""
        models = case.checkpoints[-self.checkpoints :]
        each = [
            [self._at(case, model, multiples, number * self.masks + mask, own) for mask in range(self.masks)]
            for number, model in enumerate(models)
        ]
        return [self._joined(case, [[mask[d] for mask in masks] for masks in each]) for d in range(len(multiples))]

    def _joined(self, case: Case, found: Sequence[Sequence[Found]]) -> Found:
        """Of checkpoints and masks: the sum of the means."""
        weights = _rates(case, len(found)) if self.rates else [1.0] * len(found)
        pairs = [torch.stack([one.pairs for one in masks]).mean(0) for masks in found]
        own = [w * torch.stack(known).mean(0) for w, masks in zip(weights, found) if (known := _own(masks))]
        return Found(over_checkpoints(pairs, weights), torch.stack(own).sum(0) if own else None)

    def _at(self, case: Case, model: nn.Module, multiples: Sequence[float], seed: int, own: bool) -> list[Found]:
        blocks = (head(model),) if self.only_head else features(available(model))
        compressor = None if self.compress is None else self.compress(blocks, case, model, seed)
        curvature = self.curvature(blocks if compressor is None else compressor.blocks)
        points, queries = batches(case.points), batches(case.queries)
        found = []
        with Influence(model, TASK, curvature, blocks, self.fisher, compressor=compressor) as influence:
            for multiple in multiples:
                damping = Damping("absolute", multiple * self.damping(case.recipe))
                if found:
                    curvature.finish(damping)
                else:
                    influence.fit(points, damping)
                scores = influence.pairs(points, queries, own=own)
                found.append(Found(scores.influence, scores.self_influence if own else None))
        return found


def _own(masks: Sequence[Found]) -> list[Tensor]:
    return [one.own for one in masks if one.own is not None]


def _rates(case: Case, count: int) -> list[float]:
    """Of each of the last checkpoints, the sum of the learning rates of the quarter of the steps that it ends."""
    rates = case.recipe.rates(POINTS)
    quarter = len(rates) // 4
    return [sum(rates[number * quarter : (number + 1) * quarter]) for number in range(4 - count, 4)]


def batches(points: Labelled) -> list[Batch]:
    """Of a size that every network takes."""
    return list(zip(points.inputs.split(BATCH), points.labels.split(BATCH), strict=True))


def fitted_kfac(blocks: Blocks, case: Case, model: nn.Module) -> KFAC:
    """K-FAC of the train points, for its eigenvectors."""
    curvature = KFAC(blocks)
    with Influence(model, TASK, curvature, blocks) as influence:
        influence.fit(batches(case.points), Damping("absolute", decay(case.recipe)))
    return curvature


def cosine(case: Case, multiples: Sequence[float], own: bool) -> list[Found]:
    """Gradient cosine: the inner product of gradients over both norms."""
    [found] = Engine(Identity, lambda _: 1.0)(case, multiples, True)
    [queries] = Engine(Identity, lambda _: 1.0)(replace(case, points=case.queries), multiples, True)
    assert found.own is not None
    assert queries.own is not None
    return [Found(found.pairs / (found.own[:, None] * queries.own).sqrt(), None)]
