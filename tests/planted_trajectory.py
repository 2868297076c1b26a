"""Planted errors in what follows a training; see `planted`."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from influence import Factor, Factors, Gradients, learning, trajectory, unrolling
from influence.trajectory import Step
from influence.unrolling import Segment
from tests.planted import seen_by

RIDGE = "test_on_ridge_leaving_a_point_out_of_a_step_moves_the_parameters_exactly_so"
SOFTMAX = "test_on_softmax_regression_it_is_the_derivative_of_the_training_in_a_points_weight_at_a_step"
MINI = [torch.arange(48).remainder(24)[start : start + 6] for start in range(0, 48, 6)]

Walk = Callable[..., Iterator[Tensor]]


def instead(patch: pytest.MonkeyPatch, wrong: Callable[[Walk, list[Step], Gradients, float, float], Any]) -> None:
    """Walk back through the steps otherwise; the tests call the function under the name that they imported."""
    from tests.influence import test_trajectory

    right = trajectory.step_effects

    def walk(steps: Sequence[Step], final: Gradients, momentum: float = 0.0, weight_decay: float = 0.0) -> Any:
        return wrong(right, list(steps), final, momentum, weight_decay)

    patch.setattr(trajectory, "step_effects", walk)
    patch.setattr(test_trajectory, "step_effects", walk)


@seen_by("test_trajectory", RIDGE, MINI, 0.0, 0.0)
@seen_by("test_trajectory", SOFTMAX, 0.0, 0.0)
def learning_rate_of_the_step_after(patch: pytest.MonkeyPatch) -> None:
    def wrong(right: Walk, steps: list[Step], *given: Any) -> Iterator[Tensor]:
        later = [*steps[1:], steps[-1]]
        return right([replace(one, rate=other.rate) for one, other in zip(steps, later, strict=True)], *given)

    instead(patch, wrong)


@seen_by("test_trajectory", RIDGE, MINI, 0.0, 0.0)
@seen_by("test_trajectory", SOFTMAX, 0.9, 0.05)
def effect_not_divided_by_the_batch(patch: pytest.MonkeyPatch) -> None:
    instead(
        patch,
        lambda right, steps, *given: (
            len(step.points) * effect for step, effect in zip(steps[::-1], right(steps, *given), strict=True)
        ),
    )


@seen_by("test_trajectory", RIDGE, MINI, 0.0, 0.05)
def curvature_not_divided_by_the_batch(patch: pytest.MonkeyPatch) -> None:
    def scaled(roots: Factors, size: int) -> Factors:
        return {name: Factor(factor.a, factor.g * size**0.5) for name, factor in roots.items()}

    instead(
        patch,
        lambda right, steps, *given: right(
            [replace(step, roots=scaled(step.roots, len(step.points))) for step in steps], *given
        ),
    )


@seen_by("test_trajectory", RIDGE, MINI, 0.0, 0.0)
@seen_by("test_trajectory", SOFTMAX, 0.9, 0.05)
def walked_forwards(patch: pytest.MonkeyPatch) -> None:
    instead(patch, lambda right, steps, *given: iter(list(right(steps[::-1], *given))[::-1]))


@seen_by("test_trajectory", RIDGE, MINI, 0.9, 0.05)
@seen_by("test_trajectory", SOFTMAX, 0.9, 0.05)
def momentum_ignored(patch: pytest.MonkeyPatch) -> None:
    instead(patch, lambda right, steps, final, _, weight_decay: right(steps, final, 0.0, weight_decay))


@seen_by("test_trajectory", RIDGE, MINI, 0.0, 0.05)
def weight_decay_ignored(patch: pytest.MonkeyPatch) -> None:
    instead(patch, lambda right, steps, final, momentum, _: right(steps, final, momentum, 0.0))


@seen_by("test_trajectory", RIDGE, MINI, 0.9, 0.05)
@seen_by("test_trajectory", SOFTMAX, 0.0, 0.0)
def influence_with_the_other_sign(patch: pytest.MonkeyPatch) -> None:
    instead(patch, lambda right, *given: (-effect for effect in right(*given)))


# Unrolling

QUADRATIC = "test_small_steps_of_gradient_descent_on_quadratics_do_what_the_filters_say"
THROUGH = "test_an_earlier_segment_is_seen_through_the_later_ones"


def unrolled(
    patch: pytest.MonkeyPatch, wrong: Callable[[Callable[..., Any], list[Segment], Gradients, float], Any]
) -> None:
    """Unroll otherwise; the tests call the function under the name that they imported."""
    from tests.influence import test_unrolling

    right = unrolling.unroll

    def unroll(segments: Sequence[Segment], queries: Gradients, weight_decay: float = 0.0) -> Any:
        return wrong(right, list(segments), queries, weight_decay)

    patch.setattr(test_unrolling, "unroll", unroll)


@seen_by("test_unrolling", THROUGH)
@seen_by("test_unrolling", QUADRATIC, "mlp", 0.0)
def segments_in_the_other_order(patch: pytest.MonkeyPatch) -> None:
    unrolled(patch, lambda right, segments, *given: right(segments[::-1], *given)[::-1])


@seen_by("test_unrolling", THROUGH)
def later_segments_forgotten(patch: pytest.MonkeyPatch) -> None:
    unrolled(patch, lambda right, segments, *given: [right([segment], *given)[0] for segment in segments])


@seen_by("test_unrolling", "test_a_segment_without_end_is_influence_damped_by_the_weight_decay", "mlp")
def weight_decay_left_out_of_the_filters(patch: pytest.MonkeyPatch) -> None:
    unrolled(patch, lambda right, segments, queries, _: right(segments, queries, 0.0))


@seen_by("test_unrolling", "test_what_is_flat_is_followed_for_the_whole_horizon")
@seen_by("test_unrolling", "test_a_short_segment_is_the_learning_rate_times_gradient_dots")
def horizon_left_out(patch: pytest.MonkeyPatch) -> None:
    unrolled(
        patch,
        lambda right, segments, *given: [
            {name: one / segment.horizon for name, one in met.items()}
            for segment, met in zip(segments, right(segments, *given), strict=True)
        ],
    )


@seen_by("test_unrolling", "test_influence_takes_the_mean_gradient_of_each_segments_checkpoints")
def checkpoints_added_up_instead_of_averaged(patch: pytest.MonkeyPatch) -> None:
    from tests.influence import test_unrolling

    right = unrolling.unrolled_influence

    def wrong(checkpoints: Sequence[Sequence[Factors]], met: Sequence[Gradients], points: int) -> Tensor:
        return sum((right([[one]], [queries], points) for part, queries in zip(checkpoints, met) for one in part), 0)

    patch.setattr(test_unrolling, "unrolled_influence", wrong)


# Learning


@seen_by("test_learning", "test_only_what_was_right_before_it_was_memorized_and_stays_right_counts")
def memorized_points_count_as_learned(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(learning, "MEMORIZED", 1.0)
