"""Which models are retrained: seeds, steps, and the points that each is trained without."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flows.recipe import steps_for
from flows.sections.training import TrainingConfig

SPACING = 10_000
"""Between the seeds of the retrainings of one subset, so that more subsets or retrainings keep those there are."""


@dataclass(frozen=True)
class Retraining:
    """One model to train.

    Attributes:
        seed: Of the initial weights, the order of the points and whatever the model draws.
        steps: Optimizer steps.
        left_out: Places of the points that it is not trained on, ascending.
        skipped: Place of a point that stays in its batches, where its loss weighs nothing: seed, order and all other
            terms are those of the model trained on everything.
    """

    seed: int
    steps: int
    left_out: tuple[int, ...] = ()
    skipped: int | None = None


def places(members: Tensor) -> tuple[int, ...]:
    """Places of the members of a set, `[n]` bool, ascending."""
    return tuple(members.nonzero()[:, 0].tolist())


def draw_subsets(points: int, count: int, share: float, seed: int) -> Tensor:
    """Random subsets of a fixed size; the first ones stay the same when more are drawn.

    Args:
        points: n.
        count: M.
        share: Of the points in each.
        seed: Of the draws.

    Returns:
        Membership, `[M, n]`, bool.
    """
    generator = torch.Generator().manual_seed(seed)
    members = torch.zeros(count, points, dtype=torch.bool)
    for row in members:
        row[torch.randperm(points, generator=generator)[: round(share * points)]] = True
    return members


def subset_retrainings(training: TrainingConfig, subsets: Tensor, retrains: int) -> list[Retraining]:
    """The models of each subset, for the epochs of the recipe: fewer points, fewer steps.

    Returns:
        `[M * retrains]`, the models of a subset side by side.
    """
    return [
        Retraining(
            seed=training.seed + SPACING * (turn + 1) + number,
            steps=steps_for(training, int(members.sum())),
            left_out=places(~members),
        )
        for number, members in enumerate(subsets)
        for turn in range(retrains)
    ]
