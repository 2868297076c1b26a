"""Errors that this kind of code is known to have, planted one at a time, each with the check that must see it.

A plant changes the engine through monkeypatch; its check is a test of the suite, called as it stands.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from influence import EKFAC, Damping, FactorSource, HeadGaussNewton, PairScores, Scorer, factored, gradients, scores
from influence.curvature import kronecker
from influence.factored import Factor, Factors

score, reduce_passes, decompose, finish = Scorer.score, EKFAC.reduce, EKFAC._decompose, EKFAC.finish
pull, inputs, stratified_error = FactorSource.pull, FactorSource.inputs, scores.stratified_error


@dataclass(frozen=True)
class Plant:
    """One error: what it is, how to plant it, and the test (module, name, arguments) that must then fail."""

    name: str
    apply: Callable[[pytest.MonkeyPatch], None]
    module: str
    check: str
    arguments: tuple[str, ...] = ()


def flipped_sign(patch: pytest.MonkeyPatch) -> None:
    def wrong(self: Scorer, factors: Factors) -> PairScores:
        pairs = score(self, factors)
        return replace(pairs, influence=-pairs.influence)

    patch.setattr(Scorer, "score", wrong)


def missing_one_over_n(patch: pytest.MonkeyPatch) -> None:
    def wrong(self: Scorer, factors: Factors) -> PairScores:
        pairs = score(self, factors)
        return replace(pairs, influence=pairs.influence * self._points)

    patch.setattr(Scorer, "score", wrong)


def self_influence_with_one_over_n(patch: pytest.MonkeyPatch) -> None:
    def wrong(self: Scorer, factors: Factors) -> PairScores:
        pairs = score(self, factors)
        return replace(pairs, self_influence=pairs.self_influence / self._points)

    patch.setattr(Scorer, "score", wrong)


def checkpoints_averaged(patch: pytest.MonkeyPatch) -> None:
    def wrong(left: PairScores, right: PairScores) -> PairScores:
        return PairScores((left.influence + right.influence) / 2, (left.self_influence + right.self_influence) / 2)

    patch.setattr(PairScores, "__add__", wrong)


def eigenbasis_stored_transposed(patch: pytest.MonkeyPatch) -> None:
    def wrong(self: EKFAC, all_reduce: Callable[[Tensor], None]) -> None:
        decompose(self, all_reduce)
        for block in self.state.values():
            block.input_basis, block.output_basis = block.input_basis.T, block.output_basis.T

    patch.setattr(EKFAC, "_decompose", wrong)


def factors_rotated_by_the_transpose(patch: pytest.MonkeyPatch) -> None:
    def wrong(factor: Factor, a: Tensor, g: Tensor) -> Factor:
        return factored.rotate(factor, a.T, g.T)

    patch.setattr(kronecker, "rotate", wrong)


def damping_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Damping, "resolve", lambda self, mean_eigenvalue: 1e-9)


def damping_before_the_square(patch: pytest.MonkeyPatch) -> None:
    def wrong(self: EKFAC, damping: Damping) -> None:
        finish(self, damping)
        for block in self.state.values():
            block.eigenvalues = (block.eigenvalues.sqrt() + block.damping).square() - block.damping

    patch.setattr(EKFAC, "finish", wrong)


def kfac_eigenvalues(patch: pytest.MonkeyPatch) -> None:
    def wrong(self: EKFAC, damping: Damping) -> None:
        for block in self.state.values():
            outputs = (block.output_basis.T @ block.output_covariance @ block.output_basis).diagonal()
            inputs = (block.input_basis.T @ block.input_covariance @ block.input_basis).diagonal()
            block.eigenvalues = torch.outer(outputs, inputs)
        finish(self, damping)

    patch.setattr(EKFAC, "finish", wrong)


def one_label_instead_of_the_expectation(patch: pytest.MonkeyPatch) -> None:
    def wrong(source: FactorSource, logits: Tensor) -> Factors:
        p = logits.detach().softmax(1)
        label = torch.nn.functional.one_hot(p.argmax(1), p.shape[1])
        pulled = source.pull(logits, label - p, retain=True)
        return {name: Factor(factor.a, factor.g[None]) for name, factor in pulled.items()}

    patch.setattr(gradients, "label_factors", wrong)


def label_root_forgotten(patch: pytest.MonkeyPatch) -> None:
    def wrong(source: FactorSource, logits: Tensor) -> Factors:
        residuals = torch.eye(logits.shape[1], dtype=logits.dtype)[:, None] - logits.detach().softmax(1)
        pulled = [source.pull(logits, residual, retain=True) for residual in residuals]
        return {name: Factor(pulled[0][name].a, torch.stack([f[name].g for f in pulled])) for name in pulled[0]}

    patch.setattr(gradients, "label_factors", wrong)


def standard_error_without_root_m(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        scores, "stratified_error", lambda values, labels: stratified_error(values, labels) * len(labels) ** 0.5
    )


def standard_error_across_classes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(scores, "stratified_error", lambda values, labels: values.std(1) / len(labels) ** 0.5)


def removed_points_counted(patch: pytest.MonkeyPatch) -> None:
    for curvature in (EKFAC, HeadGaussNewton):
        accumulate = curvature.accumulate

        def wrong(self, batch, weights, accumulate=accumulate):  # type: ignore[no-untyped-def]
            accumulate(self, batch, torch.ones_like(weights))

        patch.setattr(curvature, "accumulate", wrong)


def counts_not_reduced(patch: pytest.MonkeyPatch) -> None:
    def wrong(self: EKFAC, all_reduce: Callable[[Tensor], None]) -> None:
        reduce_passes(self, lambda tensor: all_reduce(tensor) if tensor.ndim else None)

    patch.setattr(EKFAC, "reduce", wrong)


def bias_forgotten(patch: pytest.MonkeyPatch) -> None:
    def wrong(self: FactorSource, name: str) -> Tensor:
        a = inputs(self, name).clone()
        a[..., -1] = 0
        return a

    patch.setattr(FactorSource, "inputs", wrong)


def loss_averaged_over_the_batch(patch: pytest.MonkeyPatch) -> None:
    def wrong(self: FactorSource, outputs: Tensor, cotangent: Tensor | None = None, *, retain: bool = False) -> Factors:
        return pull(self, outputs / len(outputs), cotangent, retain=retain)

    patch.setattr(FactorSource, "pull", wrong)


CONSTANT = "test_ekfac_is_the_damped_gauss_newton_inverse_where_the_label_covariance_is_constant"
EIGENVALUES = "test_eigenvalues_are_the_exact_expectation_over_labels_in_the_eigenbasis"
LEAVE_ONE_OUT = "test_softmax_influence_predicts_exact_leave_one_out_refits"
SPREAD = "test_the_standard_error_is_the_spread_of_the_mean_over_redrawn_queries"
WEIGHTS = "test_points_of_weight_zero_do_not_enter"
TORCH_FUNC = "test_factors_are_the_per_point_gradients_of_torch_func"

PLANTS = (
    Plant("sign flipped", flipped_sign, "test_scores", "test_a_copy_of_the_query_helps_and_in_binary_its_flip_harms"),
    Plant("sign flipped, exact", flipped_sign, "test_dense", LEAVE_ONE_OUT),
    Plant("1/n missing", missing_one_over_n, "test_dense", LEAVE_ONE_OUT),
    Plant(
        "1/n missing, ridge",
        missing_one_over_n,
        "test_dense",
        "test_ridge_leave_one_out_is_exact_after_the_leverage_correction",
    ),
    Plant(
        "self-influence over n",
        self_influence_with_one_over_n,
        "test_scores",
        "test_self_influence_is_n_times_the_influence_of_a_point_on_itself",
    ),
    Plant(
        "checkpoints averaged",
        checkpoints_averaged,
        "test_scores",
        "test_checkpoints_are_added_before_anything_is_averaged",
    ),
    Plant(
        "eigenbasis transposed",
        eigenbasis_stored_transposed,
        "test_kronecker",
        "test_the_basis_diagonalises_both_covariances",
        ("mlp",),
    ),
    Plant("eigenbasis transposed, exact case", eigenbasis_stored_transposed, "test_kronecker", CONSTANT),
    Plant(
        "factors rotated by the transpose", factors_rotated_by_the_transpose, "test_kronecker", EIGENVALUES, ("mlp",)
    ),
    Plant("damping forgotten", damping_forgotten, "test_kronecker", CONSTANT),
    Plant("damping forgotten by the head", damping_forgotten, "test_dense", LEAVE_ONE_OUT),
    Plant("damping before the square", damping_before_the_square, "test_kronecker", CONSTANT),
    Plant("K-FAC eigenvalues", kfac_eigenvalues, "test_kronecker", EIGENVALUES, ("mlp",)),
    Plant(
        "one label, not the expectation", one_label_instead_of_the_expectation, "test_kronecker", EIGENVALUES, ("mlp",)
    ),
    Plant("sqrt(p) of the label missing", label_root_forgotten, "test_kronecker", EIGENVALUES, ("positions",)),
    Plant("standard error without sqrt(m)", standard_error_without_root_m, "test_scores", SPREAD),
    Plant("standard error across classes", standard_error_across_classes, "test_scores", SPREAD),
    Plant("removed points counted", removed_points_counted, "test_kronecker", WEIGHTS, ("mlp",)),
    Plant("removed points counted by the head", removed_points_counted, "test_dense", WEIGHTS),
    Plant(
        "counts not reduced",
        counts_not_reduced,
        "test_kronecker",
        "test_two_ranks_that_share_the_batches_have_the_curvature_of_one",
        ("mlp",),
    ),
    Plant("bias forgotten", bias_forgotten, "test_gradients", TORCH_FUNC, ("mlp",)),
    Plant("loss averaged over the batch", loss_averaged_over_the_batch, "test_gradients", TORCH_FUNC, ("positions",)),
)
