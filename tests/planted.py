"""Errors that this kind of code is known to have, planted one at a time, each with the check that must see it.

A plant changes the engine through monkeypatch; its check is a test of the suite, called as it stands. Those in the
curvatures are in `planted_curvature`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from influence import (
    FactorCache,
    GroupScorer,
    Own,
    PairScorer,
    PairScores,
    Reader,
    cache,
    layouts,
    queries,
    relative,
    scores,
)
from influence.curvature import eigenbasis
from influence.fisher import residuals


@dataclass(frozen=True)
class Plant:
    """One error: what it is, how to plant it, and the test that must then fail: its module in tests/influence, or as
    `flows.test_slices` in another folder, its name and arguments."""

    name: str
    apply: Callable[[pytest.MonkeyPatch], None]
    module: str
    check: str
    arguments: tuple[Any, ...] = ()


PLANTS: list[Plant] = []
Apply = Callable[[pytest.MonkeyPatch], None]


def seen_by(module: str, check: str, *arguments: Any) -> Callable[[Apply], Apply]:
    """Enter a plant under the name of its function, with the test that sees it."""

    def enter(apply: Apply) -> Apply:
        PLANTS.append(Plant(apply.__name__.replace("_", " "), apply, module, check, arguments))
        return apply

    return enter


def after(patch: pytest.MonkeyPatch, owner: Any, name: str, change: Callable[[Any], Any]) -> None:
    """Let a function return something else than it does."""
    right = getattr(owner, name)
    patch.setattr(owner, name, lambda *given, **named: change(right(*given, **named)))


# Influence


@seen_by("test_scores", "test_a_copy_of_the_query_helps_and_in_binary_its_flip_harms")
@seen_by("test_engine", "test_end_to_end_exact_gauss_newton_is_the_formula", "mlp")
def sign_flipped(patch: pytest.MonkeyPatch) -> None:
    after(
        patch,
        PairScorer,
        "score",
        lambda pairs: replace(pairs, influence=-pairs.influence, classification=-pairs.classification),
    )


@seen_by("test_scores", "test_influence_is_the_mean_removal_formula_with_the_curvatures_own_inverse", "conv")
@seen_by("test_scores", "test_a_fitted_models_influences_add_up_as_stationarity_says")
def one_over_n_missing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(scores, "_positive", lambda points: 1)


@seen_by("test_scores", "test_self_influence_is_n_times_the_influence_of_a_point_on_itself")
def self_influence_over_n(patch: pytest.MonkeyPatch) -> None:
    after(
        patch, PairScorer, "score", lambda pairs: replace(pairs, given=Own(pairs.self_influence / len(pairs.influence)))
    )


@seen_by("test_scores", "test_checkpoints_are_added_before_anything_is_averaged")
def checkpoints_averaged(patch: pytest.MonkeyPatch) -> None:
    def wrong(left: PairScores, right: PairScores) -> PairScores:
        pairs = zip((left.influence, left.classification), (right.influence, right.classification))
        return PairScores(*((one + other) / 2 for one, other in pairs), left.own)

    patch.setattr(PairScores, "__add__", wrong)


@seen_by("test_scores", "test_influence_is_the_doubt_times_classification_influence", "mlp")
def margin_taken_for_the_loss(patch: pytest.MonkeyPatch) -> None:
    after(patch, queries, "_doubt", torch.ones_like)


@seen_by("test_queries", "test_a_confidently_right_query_keeps_its_margin_gradient_and_its_doubt", torch.float32)
def doubt_from_a_rounded_probability(patch: pytest.MonkeyPatch) -> None:
    def wrong(reading: Any) -> Tensor:
        return 1 - reading.logits.softmax(1)[torch.arange(len(reading.labels)), reading.labels]

    patch.setattr(queries, "_doubt", wrong)


@seen_by("test_scores", "test_influence_on_a_group_is_the_mean_of_the_pairs", "positions")
def groups_summed(patch: pytest.MonkeyPatch) -> None:
    def wrong(groups: queries.Groups) -> queries.Groups:
        sizes = groups.sizes[:, None, None]
        return replace(groups, gradients={name: full * sizes for name, full in groups.gradients.items()})

    after(patch, import_module("tests.influence.test_scores"), "group_means", wrong)


@seen_by("test_scores", "test_the_mean_is_that_of_all_groups_weighted_by_their_queries", "mlp")
def mean_of_group_means(patch: pytest.MonkeyPatch) -> None:
    after(patch, GroupScorer, "score", lambda found: replace(found, mean=found.influence.mean(1)))


@seen_by("test_scores", "test_the_standard_error_is_the_spread_of_the_mean_over_redrawn_queries")
def standard_error_without_root_m(patch: pytest.MonkeyPatch) -> None:
    right = scores.stratified_error
    patch.setattr(scores, "stratified_error", lambda values, labels: right(values, labels) * len(labels) ** 0.5)


@seen_by("test_scores", "test_the_standard_error_is_the_spread_of_the_mean_over_redrawn_queries")
def standard_error_across_classes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(scores, "stratified_error", lambda values, labels: values.std(1) / len(labels) ** 0.5)


# Relative influence

NULL = "test_a_point_of_negligible_self_influence_is_null_and_counted_not_ranked"


@seen_by("test_engine", "test_end_to_end_ekfac_is_the_formula", "mlp")
def step_with_one_inverse(patch: pytest.MonkeyPatch) -> None:
    after(patch, eigenbasis, "_own", lambda own: replace(own, squared_step=own.self_influence))


@seen_by("test_relative", "test_modes_are_their_formulas")
def theta_and_l_exchanged(patch: pytest.MonkeyPatch) -> None:
    def wrong(found: relative.RelativeInfluence) -> relative.RelativeInfluence:
        return replace(found, theta=found.l, l=found.theta)

    after(patch, import_module("tests.influence.test_relative"), "relative_influence", wrong)


@seen_by(
    "test_relative", "test_a_point_of_negligible_self_influence_is_null_and_counted_not_ranked", [1, 2, 3, 1e-7, 0]
)
def noise_over_noise_ranked(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(relative, "NEGLIGIBLE", 0.0)


# Reading


@seen_by("test_engine", "test_results_do_not_depend_on_the_batch_size", "mlp", "exact")
def loss_averaged_over_the_batch(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("influence.reader.residuals", lambda p, labels: residuals(p, labels) / len(p))


@seen_by("test_engine", "test_end_to_end_exact_gauss_newton_is_the_formula", "mlp")
def bias_forgotten(patch: pytest.MonkeyPatch) -> None:
    after(patch, layouts, "_with_bias", lambda a: torch.cat([a[..., :-1], 0 * a[..., -1:]], -1))


@seen_by("test_cache", "test_what_is_kept_and_where_never_changes_a_result", "mlp", "exact", 0.0, 1.0)
def another_batch_from_the_file(patch: pytest.MonkeyPatch) -> None:
    get = FactorCache.get
    patch.setattr(FactorCache, "get", lambda self, number: get(self, 0))
    patch.setattr(Reader, "_kept", lambda self, batch, number: self._cache and self._cache.get(number))


@seen_by("test_cache", "test_a_shuffled_loader_is_refused", {"memory": 1 << 20})
def shuffled_batches_taken_for_kept_ones(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Reader, "_kept", lambda self, batch, number: self._cache and self._cache.get(number))


@seen_by("test_cache", "test_budgets_are_never_exceeded_and_memory_is_filled_first", "conv")
def roots_kept_beyond_the_budget(patch: pytest.MonkeyPatch) -> None:
    after(patch, cache, "_size", lambda size: size // 2)
