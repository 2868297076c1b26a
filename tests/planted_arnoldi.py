"""Planted errors in Arnoldi, LiSSA and DataInf; see `planted`."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from influence import Gradients
from influence.curvature import arnoldi
from influence.curvature.arnoldi import Arnoldi
from tests.left_out import lissa
from tests.left_out.datainf import DataInf
from tests.planted import after, seen_by

FULL = "test_with_every_direction_of_curvature_it_is_the_inverse"
FLAT = "test_the_complement_is_exact_where_the_rest_of_the_spectrum_is_flat"


@seen_by("test_arnoldi", FULL, "mlp")
@seen_by("test_arnoldi", FLAT)
def complement_dropped(patch: pytest.MonkeyPatch) -> None:
    right = Arnoldi._inverse

    def wrong(self: Arnoldi) -> tuple[float, Tensor]:
        rest, extra = right(self)
        return 0.0, extra + rest

    patch.setattr(Arnoldi, "_inverse", wrong)


@seen_by("test_arnoldi", FLAT)
def rest_taken_for_the_damping_alone(patch: pytest.MonkeyPatch) -> None:
    after(patch, arnoldi, "_of_the_rest", lambda _: 0.0)


@seen_by("test_arnoldi", FLAT)
@seen_by("test_arnoldi", "test_what_the_complement_takes_for_the_rest_is_the_mean_that_its_roots_see")
def rest_averaged_over_directions_without_curvature(patch: pytest.MonkeyPatch) -> None:
    def wrong(times: Callable[[Tensor], Tensor], vectors: Tensor, signs: Tensor, trace: float) -> float:
        kept, size = vectors.shape
        return (trace - float((times(vectors) * vectors).sum())) / (size - kept)

    patch.setattr(arnoldi, "_of_the_rest", wrong)


@seen_by("test_arnoldi", "test_the_basis_stays_orthogonal_where_plain_lanczos_loses_it", 1)
@seen_by("test_arnoldi", "test_the_basis_stays_orthogonal_where_plain_lanczos_loses_it", 4)
def orthogonal_to_the_last_vectors_alone(patch: pytest.MonkeyPatch) -> None:
    right = arnoldi._fresh
    patch.setattr(arnoldi, "_fresh", lambda image, basis, scale: right(image, basis[-2 * len(image) :], scale))


@seen_by("test_arnoldi", "test_at_full_rank_values_and_vectors_are_those_of_the_matrix", 1)
def ritz_vectors_transposed(patch: pytest.MonkeyPatch) -> None:
    after(patch, torch.linalg, "eigh", lambda found: (found[0], found[1].T))


@seen_by("test_arnoldi", "test_negative_and_negligible_values_are_dropped")
def negative_values_kept_by_their_size(patch: pytest.MonkeyPatch) -> None:
    after(patch, torch.linalg, "eigh", lambda found: (found[0].abs(), found[1]))


@seen_by("test_lissa", "test_the_series_converges_to_the_inverse")
@seen_by("test_lissa", "test_what_is_left_after_so_many_steps_is_the_series_formula", "mlp")
def damping_forgotten_in_the_series(patch: pytest.MonkeyPatch) -> None:
    right = lissa.factor_product
    patch.setattr(lissa, "factor_product", lambda roots, damping: right(roots, 0.0))


@seen_by("test_lissa", "test_a_damping_of_the_wrong_sign_diverges")
def divergence_not_seen(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(lissa, "_diverged", lambda residuals: False)


@seen_by("test_datainf", "test_it_is_the_mean_of_the_points_inverses", "mlp")
@seen_by("test_datainf", "test_with_one_root_a_point_it_is_the_formula_of_the_paper")
def sum_of_inverses_for_their_mean(patch: pytest.MonkeyPatch) -> None:
    right = DataInf.solve

    def wrong(self: DataInf, gradients: Gradients) -> Gradients:
        points = len(next(iter(self._roots.values())))
        return {name: one * points for name, one in right(self, gradients).items()}

    patch.setattr(DataInf, "solve", wrong)
