"""Planted errors in the exact curvatures; see `planted`."""

from typing import Any

import pytest
import torch
from torch import Tensor

from influence import AllReduce, Damping, Factor, Factors, GaussNewton, Gradients, Share
from influence.curvature import dual, gram, iterative, products
from influence.curvature.dual import DualGaussNewton
from influence.curvature.gram import Rows
from influence.curvature.iterative import PCG
from influence.curvature.roots import KeptRoots
from tests.planted import after, seen_by

SOLVE = "test_solve_is_the_inverse_of_the_joint_gauss_newton_matrix"
OWN = "test_own_terms_and_scores_are_those_of_dense_algebra"
RANKS = "test_two_ranks_that_share_the_batches_have_the_solution_of_one"
SWEEP = "test_a_sweep_measures_what_separate_fits_do_and_leaves_the_last_damping"
SPECTRUM = "test_diagnostics_are_right_on_a_known_spectrum"


@seen_by("test_exact", SOLVE, "dense", "mlp")
@seen_by("test_exact", SOLVE, "dense", "conv")
@seen_by("test_exact", "test_what_a_block_leaves_out_is_the_schur_complements_term", "dense")
def cross_terms_between_blocks_forgotten(patch: pytest.MonkeyPatch) -> None:
    reduce = GaussNewton.reduce

    def wrong(self: GaussNewton, all_reduce: AllReduce) -> None:
        reduce(self, all_reduce)
        sizes = [o * i for o, i in self.joint.shapes.values()]
        self.matrix.mul_(torch.block_diag(*(torch.ones(size, size) for size in sizes)))

    patch.setattr(GaussNewton, "reduce", wrong)


@seen_by("test_exact", SOLVE, "dual", "mlp")
def dual_not_divided_by_the_damping(patch: pytest.MonkeyPatch) -> None:
    right = DualGaussNewton.solve

    def wrong(self: DualGaussNewton, gradients: Gradients) -> Gradients:
        return {name: one * self.damping for name, one in right(self, gradients).items()}

    patch.setattr(DualGaussNewton, "solve", wrong)


@seen_by("test_exact", SWEEP, "dual")
@seen_by("test_dual", "test_another_damping_leaves_the_gram_matrix_as_it_was")
def damping_added_in_place(patch: pytest.MonkeyPatch) -> None:
    finish = DualGaussNewton.finish

    def wrong(self: DualGaussNewton, damping: Damping) -> None:
        finish(self, damping)
        self.gram.diagonal().add_(self.damping)

    patch.setattr(DualGaussNewton, "finish", wrong)


@seen_by("test_exact", SWEEP, "dense")
@seen_by("test_exact", SWEEP, "cg")
def former_damping_kept(patch: pytest.MonkeyPatch) -> None:
    for curvature in (GaussNewton, PCG):
        finish = curvature.finish

        def wrong(self: Any, damping: Damping, finish: Any = finish) -> None:
            if self.damping <= 0:
                finish(self, damping)

        patch.setattr(curvature, "finish", wrong)


@seen_by("test_exact", OWN, "dual", "mlp")
def step_without_the_rows_own_part(patch: pytest.MonkeyPatch) -> None:
    right = DualGaussNewton._own

    def wrong(self: DualGaussNewton, factors: Factors, step: bool) -> Any:
        own = right(self, factors, step)
        return type(own)(own.self_influence, own.self_influence / self.damping if step else None)

    patch.setattr(DualGaussNewton, "_own", wrong)


@seen_by("test_dual", "test_a_cut_leaves_out_the_smallest_roots_up_to_its_share_of_the_trace")
def largest_roots_cut(patch: pytest.MonkeyPatch) -> None:
    right = dual._largest
    patch.setattr(dual, "_largest", lambda sizes, cut, most: right(1 / sizes, cut, most))


@seen_by("test_exact", RANKS, "dual", 7)
@seen_by("test_exact", RANKS, "cg", 7)
def ranks_write_over_each_other(patch: pytest.MonkeyPatch) -> None:
    gather = KeptRoots.gather

    def wrong(self: KeptRoots, all_reduce: AllReduce) -> Any:
        self._share = Share(0, self._share.world)
        return gather(self, all_reduce)

    patch.setattr(KeptRoots, "gather", wrong)


@seen_by("test_exact", "test_points_of_weight_zero_do_not_enter", "dense", "mlp")
@seen_by("test_exact", "test_points_of_weight_zero_do_not_enter", "dual", "positions")
@seen_by("test_exact", "test_points_of_weight_zero_do_not_enter", "ekfac cg", "mlp")
def removed_points_kept(patch: pytest.MonkeyPatch) -> None:
    for owner, name in ((GaussNewton, "accumulate"), (KeptRoots, "add")):
        right = getattr(owner, name)

        def wrong(self: Any, batch: Factors, weights: Tensor, right: Any = right) -> None:
            right(self, batch, torch.ones_like(weights))

        patch.setattr(owner, name, wrong)


@seen_by("test_products", "test_the_product_through_the_model_is_the_one_from_roots", "mlp")
def mean_of_batch_means(patch: pytest.MonkeyPatch) -> None:
    after(patch, products, "_of_batch", lambda found: (1, {name: one / found[0] for name, one in found[1].items()}))


@seen_by("test_exact", SOLVE, "dual", "positions")
@seen_by("test_exact", SOLVE, "cg", "positions")
def sequences_summed_before_they_are_multiplied(patch: pytest.MonkeyPatch) -> None:
    cross = gram.cross

    def summed(rows: Rows) -> Rows:
        return Rows(rows.a.sum(1, keepdim=True), rows.s.sum(1, keepdim=True), rows.point)

    patch.setattr(gram, "cross", lambda left, right: cross(summed(left), summed(right)))
    for name in ("project", "combine"):
        right = getattr(products, name)

        def wrong(roots: Factor, other: Tensor, right: Any = right) -> Tensor:
            return right(Factor(roots.a.sum(1, keepdim=True), roots.g.sum(2, keepdim=True)), other)

        patch.setattr(products, name, wrong)


@seen_by("test_exact", SPECTRUM, "dual")
def trace_of_the_root_of_the_inverse(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(dual, "_trace_of_inverse", lambda lower: float(lower.diagonal().reciprocal().sum()))


@seen_by("test_exact", "test_mean_eig_damping_is_relative_to_the_mean_eigenvalue_of_all_blocks", "cg")
def mean_over_roots_for_the_mean_eigenvalue(patch: pytest.MonkeyPatch) -> None:
    after(patch, iterative, "squared_sizes", lambda sizes: sizes.flatten()[:, None])
