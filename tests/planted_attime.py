"""Planted errors in influence at training time; see `planted`."""

from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from influence import empirical, turnover
from influence.turnover import TurnOver
from tests.left_out import ignoring
from tests.planted import after, seen_by

SGD = "test_it_is_minus_the_derivative_through_one_step_of_sgd"


@seen_by("test_turnover", "test_influence_is_the_loss_with_the_flipped_mask_less_that_with_the_own")
def own_and_flipped_masks_exchanged(patch: pytest.MonkeyPatch) -> None:
    right = TurnOver._masked
    patch.setattr(TurnOver, "_masked", lambda self, keys, *, flipped: right(self, keys, flipped=not flipped))


@seen_by("test_turnover", "test_a_point_memorized_by_its_own_half_has_positive_self_influence")
def rise_for_fall(patch: pytest.MonkeyPatch) -> None:
    after(patch, turnover, "_rises", torch.neg)


@seen_by("test_turnover", "test_a_points_loss_does_not_depend_on_the_rest_of_its_batch", "mlp")
@seen_by("test_turnover", "test_a_points_loss_does_not_depend_on_the_rest_of_its_batch", "conv")
def masks_by_the_place_in_the_batch(patch: pytest.MonkeyPatch) -> None:
    right = turnover.kept_units

    def wrong(keys: Tensor, layer: str, units: int, seed: int) -> Tensor:
        return right(torch.arange(len(keys)), layer, units, seed)

    patch.setattr(turnover, "kept_units", wrong)


@seen_by("test_turnover", "test_the_mean_over_masks_is_the_output_without_them")
def kept_units_not_doubled(patch: pytest.MonkeyPatch) -> None:
    hook = torch.nn.Module.register_forward_hook

    def wrong(module: Any, scaled: Any) -> Any:
        return hook(module, lambda *given: scaled(*given) * turnover.KEEP)

    patch.setattr(torch.nn.Module, "register_forward_hook", wrong)


@seen_by("test_turnover", "test_masks_are_of_the_key_the_layers_name_and_the_seed_alone")
def one_mask_for_all_layers(patch: pytest.MonkeyPatch) -> None:
    right, checked = turnover.kept_units, import_module("tests.influence.test_turnover")
    patch.setattr(checked, "kept_units", lambda keys, layer, units, seed: right(keys, "", units, seed))


@seen_by("test_ignoring", SGD, "mlp", True)
def hypergradient_taken_for_influence(patch: pytest.MonkeyPatch) -> None:
    after(patch, ignoring, "_dots", torch.neg)


@seen_by("test_ignoring", SGD, "mlp", True)
@seen_by("test_ignoring", SGD, "conv", True)
def query_gradients_from_before_the_step(patch: pytest.MonkeyPatch) -> None:
    right = ignoring._stepped
    patch.setattr(ignoring, "_stepped", lambda parameters, gradients, rate: right(parameters, gradients, 0.0))


@seen_by("test_ignoring", SGD, "mlp", False)
def step_that_forgets_the_weights(patch: pytest.MonkeyPatch) -> None:
    right, checked = ignoring.ignoring_influence, import_module("tests.influence.test_ignoring")
    patch.setattr(checked, "ignoring_influence", lambda *given: right(*given[:-1]))


@seen_by("test_empirical", "test_it_is_the_fall_of_the_loss_by_sgd_on_one_point", "mlp")
def rise_for_fall_of_the_loss(patch: pytest.MonkeyPatch) -> None:
    checked = import_module("tests.influence.test_empirical")
    after(patch, checked, "empirical_influence", torch.neg)


@seen_by("test_empirical", "test_symmetry_leaves_out_the_diagonal")
def points_counted_as_their_own_neighbours(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(empirical, "_others", torch.Tensor.flatten)
