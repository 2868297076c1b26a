"""Planted errors in what is told of slices; see `planted`."""

from dataclasses import replace

import pytest

from flows import slices
from storage.slices import Sums
from tests.planted import after, seen_by

CHANCE = "test_where_there_is_no_pattern_one_is_marked_in_at_most_one_report_of_twenty"
PATTERN = "test_a_source_that_harms_throughout_is_the_first_slice_and_a_pattern"
SINGLE = "test_a_single_point_makes_no_pattern_however_much_it_harms"


@seen_by("flows.test_slices", CHANCE, "normal")
def each_slice_tested_as_if_it_were_the_only_one(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(slices, "holm", dict)


@seen_by("flows.test_slices", CHANCE, "a few harm greatly")
@seen_by("flows.test_slices", SINGLE)
def extreme_points_of_a_slice_spread_over_all(patch: pytest.MonkeyPatch) -> None:
    right = slices._p
    patch.setattr(slices, "_p", lambda one, whole: right(replace(one, variance=whole.variance), whole))


@seen_by("flows.test_slices", CHANCE, "a few help greatly")
def a_slice_without_the_extreme_points_believed(patch: pytest.MonkeyPatch) -> None:
    right = slices._p
    patch.setattr(slices, "_p", lambda one, whole: right(one, replace(whole, variance=one.variance)))


@seen_by("flows.test_slices", PATTERN)
def helpful_slices_marked(patch: pytest.MonkeyPatch) -> None:
    after(patch, slices, "_p", lambda p: 1 - p)


@seen_by("flows.test_slices", "test_the_interval_holds_what_as_many_points_like_these_add_up_to")
def interval_of_the_mean_for_that_of_the_sum(patch: pytest.MonkeyPatch) -> None:
    right = slices._half

    def wrong(one: Sums, whole: Sums) -> float:
        return right(one, whole) / one.points

    patch.setattr(slices, "_half", wrong)
