"""Planted errors in how points are dealt, each with the promise of the battery that must see it; see `planted`."""

from typing import Any

import pytest
import torch
from torch import Tensor

from influence import Influence, Trajectory
from influence.trajectory import step_effects
from tests.influence import estimators
from tests.planted import seen_by

BATCHES, ORDER = "test_batches_do_not_matter", "test_order_does_not_matter"
RANKS = "test_one_rank_and_two_give_the_scores_of_one_process"


@seen_by("test_battery", ORDER, "ekfac, sampled fisher")
@seen_by("test_battery", "test_units_every_point_twice_halves_what_one_of_them_does", "ekfac, sampled fisher")
def labels_sampled_by_place(patch: pytest.MonkeyPatch) -> None:
    fit = Influence.fit
    patch.setattr(Influence, "fit", lambda self, train, damping, keys: fit(self, train, damping))


@seen_by("test_battery", BATCHES, "data value embedding")
@seen_by("test_battery", RANKS, "data value embedding")
def queries_centred_by_their_batch(patch: pytest.MonkeyPatch) -> None:
    right = Trajectory._effects

    def wrong(self: Any, final: Any, count: int) -> Tensor:
        return right(self, {name: one - one.mean(0) for name, one in final.items()}, count)

    patch.setattr(Trajectory, "_effects", wrong)


@seen_by("test_battery", ORDER, "data value embedding")
def rows_of_a_step_taken_for_the_first_ones(patch: pytest.MonkeyPatch) -> None:
    def wrong(steps: Any, final: Any, count: int, momentum: float, weight_decay: float) -> Tensor:
        found = torch.zeros(count, len(next(iter(final.values()))), dtype=torch.float64)
        for effect in step_effects(steps, final, momentum, weight_decay):
            found[: len(effect)] += effect
        return found

    patch.setattr("influence.trajectory.removal_effects", wrong)


@seen_by("test_battery", BATCHES, "source")
@seen_by("test_battery", RANKS, "source")
def divided_by_the_points_of_the_batch(patch: pytest.MonkeyPatch) -> None:
    right = estimators.unrolled_influence

    def wrong(checkpoints: Any, met: Any, points: int) -> Tensor:
        return right(checkpoints, met, len(next(iter(checkpoints[0][0].values())).a))

    patch.setattr(estimators, "unrolled_influence", wrong)


@seen_by("test_battery", ORDER, "turn-over dropout")
def masks_by_place(patch: pytest.MonkeyPatch) -> None:
    right = estimators.keys_of
    patch.setattr(estimators, "keys_of", lambda batch: right(estimators.TRAIN)[: len(batch[1])])
