"""Planted errors in the curvatures; see `planted`."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from influence import EKFAC, KFAC, Damping, Fisher
from influence.curvature import cut, eigenbasis, kronecker
from influence.curvature.eigenbasis import Eigenbasis
from influence.factored import Factor
from influence.fisher import residuals, uniforms
from tests.planted import seen_by

CONSTANT = "test_a_constant_label_covariance_has_the_exact_gauss_newton_matrix"
EIGENVALUES = "test_eigenvalues_are_the_exact_expectation_over_labels_in_the_eigenbasis"
SOLVE = "test_solve_is_the_inverse_of_the_rebuilt_matrix_plus_damping"


@seen_by("test_kronecker", "test_the_basis_diagonalises_both_covariances", "mlp")
@seen_by("test_kronecker", CONSTANT, EKFAC)
def eigenbasis_transposed(patch: pytest.MonkeyPatch) -> None:
    decompose = KFAC._decompose

    def wrong(self: KFAC, all_reduce: Callable[[Tensor], None]) -> None:
        decompose(self, all_reduce)
        for side in self._sides():
            side.basis = side.basis.T

    patch.setattr(KFAC, "_decompose", wrong)


@seen_by("test_eigenbasis", "test_own_terms_and_scores_are_those_of_dense_algebra", "mlp")
def factors_rotated_by_the_transpose(patch: pytest.MonkeyPatch) -> None:
    def wrong(factor: Factor, a: Tensor, g: Tensor) -> Factor:
        return Factor(factor.a @ a.T, factor.g @ g.T)

    patch.setattr(eigenbasis, "rotate", wrong)


@seen_by("test_eigenbasis", "test_own_terms_and_scores_are_those_of_dense_algebra", "positions")
def outer_product_of_sums_over_positions(patch: pytest.MonkeyPatch) -> None:
    def wrong(factor: Factor) -> Tensor:
        return factor.g.sum(-2, keepdim=True).mT * factor.a.sum(-2, keepdim=True)

    patch.setattr(eigenbasis, "materialise", wrong)


@seen_by("test_eigenbasis", SOLVE, EKFAC, "mlp")
def damping_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Damping, "resolve", lambda self, mean_eigenvalue: 1e-9)


@seen_by("test_eigenbasis", SOLVE, KFAC, "conv")
def damping_added_to_both_factors(patch: pytest.MonkeyPatch) -> None:
    of = Eigenbasis.of

    def wrong(inputs: Tensor, outputs: Tensor, values: Tensor, damping: float, share: float | None) -> Eigenbasis:
        return of(inputs, outputs, (values.sqrt() + damping).square() - damping, damping, share)

    patch.setattr(Eigenbasis, "of", wrong)


@seen_by("test_eigenbasis", "test_another_damping_replaces_the_one_before")
def damping_added_in_place(patch: pytest.MonkeyPatch) -> None:
    finish = KFAC.finish

    def wrong(self: KFAC, damping: Damping) -> None:
        finish(self, damping)
        for name, block in self.state.items():
            block.eigenvalues.value += self._damping[name]

    patch.setattr(KFAC, "finish", wrong)


@seen_by("test_kronecker", EIGENVALUES, "conv")
@seen_by("test_kronecker", "test_ekfac_is_nearer_to_the_gauss_newton_matrix_than_kfac", "mlp")
def eigenvalues_of_kfac(patch: pytest.MonkeyPatch) -> None:
    finish = KFAC.finish

    def wrong(self: KFAC, damping: Damping) -> None:
        for block in self.state.values():
            if block.inputs is not None:
                block.eigenvalues.value.copy_(torch.outer(block.outputs.spectrum, block.inputs.spectrum))
        finish(self, damping)

    patch.setattr(KFAC, "finish", wrong)


@seen_by("test_kronecker", EIGENVALUES, "mlp")
def one_label_for_the_expectation(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Fisher, "roots", lambda self, p, labels, keys: residuals(p, p.argmax(1))[None])


@seen_by("test_kronecker", EIGENVALUES, "positions")
@seen_by("test_engine", "test_end_to_end_exact_gauss_newton_is_the_formula", "conv")
def root_of_p_missing(patch: pytest.MonkeyPatch) -> None:
    def wrong(self: Fisher, p: Tensor, labels: Tensor, keys: Tensor) -> Tensor:
        return torch.eye(p.shape[1], dtype=p.dtype)[:, None] - p

    patch.setattr(Fisher, "roots", wrong)


@seen_by("test_kronecker", "test_covariances_are_means_over_points", "norm")
def loss_counted_among_the_roots(patch: pytest.MonkeyPatch) -> None:
    right = Fisher.roots

    def wrong(self: Fisher, p: Tensor, labels: Tensor, keys: Tensor) -> Tensor:
        return torch.cat([residuals(p, labels)[None], right(self, p, labels, keys)])

    patch.setattr(Fisher, "roots", wrong)


@seen_by("test_engine", "test_results_do_not_depend_on_the_batch_size", "mlp", "sampled")
def labels_drawn_by_place_in_the_batch(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("influence.fisher.uniforms", lambda keys, draws, seed: uniforms(torch.arange(len(keys)), draws, seed))


@seen_by("test_kronecker", "test_points_of_weight_zero_do_not_enter", EKFAC, "mlp")
def removed_points_counted(patch: pytest.MonkeyPatch) -> None:
    accumulate = KFAC.accumulate
    patch.setattr(KFAC, "accumulate", lambda self, batch, w: accumulate(self, batch, torch.ones_like(w)))


@seen_by("test_kronecker", "test_two_ranks_that_share_the_batches_have_the_curvature_of_one", EKFAC, "mlp")
def counts_not_reduced(patch: pytest.MonkeyPatch) -> None:
    reduce = EKFAC.reduce

    def wrong(self: EKFAC, all_reduce: Callable[[Tensor], None]) -> None:
        reduce(self, lambda tensor: all_reduce(tensor) if tensor.ndim else None)

    patch.setattr(EKFAC, "reduce", wrong)


@seen_by("test_kronecker", "test_padding_changes_neither_curvature_nor_scores")
def padding_counted(patch: pytest.MonkeyPatch) -> None:
    def wrong(factor: Factor, weights: Tensor) -> Tensor:
        positions = factor.a.shape[1]
        return (weights[:, None] / positions).expand(-1, positions)

    patch.setattr(kronecker, "_of_positions", wrong)


@seen_by("test_kronecker", "test_covariances_are_means_over_points", "positions")
def positions_summed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(kronecker, "_of_positions", lambda factor, weights: weights[:, None].expand(-1, factor.a.shape[1]))


@seen_by("test_cut", "test_a_cut_is_exact_where_the_spectrum_is_flat_behind_it")
def what_is_cut_is_lost(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(cut, "_energies", lambda x, basis: torch.cat([(x @ basis).square(), x.new_zeros(len(x), 1)], 1))


@seen_by("test_cut", "test_a_cut_moves_neither_scores_nor_solutions")
def pairs_in_a_cut_basis(patch: pytest.MonkeyPatch) -> None:
    right = Eigenbasis.solve

    def wrong(self: Eigenbasis, gradients: Tensor) -> Tensor:
        if self.cut is not None:
            gradients = gradients @ self.cut.inputs @ self.cut.inputs.T
        return right(self, gradients)

    patch.setattr(Eigenbasis, "solve", wrong)
