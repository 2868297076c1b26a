"""Planted errors in what queries say of labels; see `planted`."""

import pytest
import torch

from influence import conformity, discovery
from tests.influence.test_discovery import N
from tests.planted import after, seen_by


@seen_by("test_conformity", "test_conformity_is_the_log_ratio_of_the_mean_distances")
@seen_by("test_conformity", "test_right_labels_conform_as_those_of_the_queries_do")
def a_query_its_own_neighbour(patch: pytest.MonkeyPatch) -> None:
    right = conformity._log_ratio
    patch.setattr(conformity, "_log_ratio", lambda inputs, labels, asked, itself=None: right(inputs, labels, asked))


@seen_by("test_conformity", "test_a_wrong_label_conforms_less_than_a_right_one")
def own_and_other_labels_exchanged(patch: pytest.MonkeyPatch) -> None:
    after(patch, conformity, "_log_ratio", torch.neg)


@seen_by("test_conformity", "test_a_label_that_no_query_has_or_all_have_is_not_judged")
def a_label_without_queries_called_strange(patch: pytest.MonkeyPatch) -> None:
    after(patch, conformity, "_mean_of_nearest", lambda means: means.nan_to_num(1e9))


@seen_by("test_discovery", "test_labels_that_fit_as_the_queries_do_add_no_discoveries")
@seen_by("test_discovery", "test_two_weak_signs_of_harm_find_more_than_one_at_the_same_rate")
def points_judged_by_the_sum_and_queries_by_influence_alone(patch: pytest.MonkeyPatch) -> None:
    right = discovery._known
    patch.setattr(discovery, "_known", lambda scores: right(scores) * (len(scores) == N))


@seen_by("test_discovery", "test_a_label_that_cannot_be_judged_counts_as_one_that_fits_as_half_of_the_queries_do")
def a_label_that_cannot_be_judged_called_strange(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(discovery, "_known", lambda scores: scores.nan_to_num(-3.0))
