"""Planted errors in removal without training; see `planted`."""

import pytest
import torch
from torch import Tensor

from influence import GaussNewton, Gradients, removal
from tests.influence import test_removal
from tests.planted import seen_by

QUADRATIC = "test_with_the_curvature_of_the_points_that_stay_it_is_the_exact_refit_of_a_quadratic"


@seen_by("test_removal", QUADRATIC)
@seen_by("test_removal", "test_removing_a_copy_of_a_query_raises_its_loss_and_adding_one_lowers_it")
def a_removal_with_the_sign_of_an_addition(patch: pytest.MonkeyPatch) -> None:
    solve = GaussNewton.solve

    def wrong(self: GaussNewton, gradients: Gradients) -> Gradients:
        return {name: -one for name, one in solve(self, gradients).items()}

    patch.setattr(GaussNewton, "solve", wrong)


@seen_by("test_removal", QUADRATIC)
def every_point_taken_for_one_that_leaves(patch: pytest.MonkeyPatch) -> None:
    right = removal.add_weighted
    patch.setattr(removal, "add_weighted", lambda factor, total, w: right(factor, total, torch.ones_like(w)))


@seen_by("test_removal", "test_unlearning_is_one_step_of_adam_on_the_loss_that_stays_less_the_loss_that_goes")
def what_stays_forgotten_for_what_goes(patch: pytest.MonkeyPatch) -> None:
    right = test_removal.unlearning_step

    def wrong(stay: Gradients, go: Gradients) -> dict[str, Tensor]:
        return dict(right(go, stay))

    patch.setattr(test_removal, "unlearning_step", wrong)
