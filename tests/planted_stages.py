"""Planted errors in influence by position and through two stages of training; see `planted`."""

from typing import Any

import pytest
import torch
from torch import Tensor

from influence import positions, stages
from tests.planted import after, seen_by

DERIVATIVE = "test_it_is_the_derivative_of_both_refits_in_a_points_weight"
PARTS = "test_a_positions_part_is_that_of_words_and_layer_of_its_own"
SUM = "test_positions_and_rest_add_up_to_the_influence_on_the_mean_of_the_queries"


@seen_by("test_stages", DERIVATIVE, "fixed")
@seen_by("test_stages", DERIVATIVE, "going on")
def what_fine_tuning_makes_of_the_features_left_out(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(stages, "_carried", lambda objective, after, before, s, seen: seen)


@seen_by("test_stages", DERIVATIVE, "fixed")
def what_the_query_sees_of_the_features_left_out(patch: pytest.MonkeyPatch) -> None:
    right = stages._carried

    def wrong(objective: Any, after: Any, before: Any, s: Any, seen: Any) -> Any:
        return right(objective, after, before, s, {name: torch.zeros_like(one) for name, one in seen.items()})

    patch.setattr(stages, "_carried", wrong)


@seen_by("test_stages", DERIVATIVE, "fixed")
@seen_by("test_stages", "test_it_ranks_what_removing_each_pretraining_point_does_after_both_refits", "going on")
def stages_of_the_papers_sign(patch: pytest.MonkeyPatch) -> None:
    after(patch, stages, "_along", lambda found: -found)


@seen_by("test_stages", DERIVATIVE, "going on")
def half_of_the_pull_towards_what_was_pretrained(patch: pytest.MonkeyPatch) -> None:
    after(patch, stages, "_carried", lambda r: {name: one / 2 for name, one in r.items()})


@seen_by("test_positions", PARTS, 5)
def words_left_out_of_the_positions(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(positions, "_in_order", lambda block: not block.layout.free)


@seen_by("test_positions", PARTS, 2)
def columns_of_a_gradient_taken_for_positions(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(positions, "_in_order", lambda block: True)


@seen_by("test_positions", SUM)
def one_over_n_missing_from_the_direction(patch: pytest.MonkeyPatch) -> None:
    from tests.influence import test_positions

    right = positions.direction
    patch.setattr(test_positions, "direction", lambda curvature, gradient, m, n: right(curvature, gradient, m, 1))


@seen_by("test_positions", PARTS, 5)
def positions_of_a_batch_in_the_wrong_order(patch: pytest.MonkeyPatch) -> None:
    def turned(found: Tensor) -> Tensor:
        return found.flatten().view(found.shape[1], found.shape[0]).T

    after(patch, positions, "_by_position", turned)
