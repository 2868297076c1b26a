"""Planted errors in gradient compression; see `planted`."""

from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from influence import Damping, Influence, Reader, Reading, compression, sketches
from influence.compression import coordinate_mask
from influence.sketches import CoordinateMask, FactorMask, Sides
from tests.influence.compressors import matrices
from tests.planted import after, seen_by

UNBIASED = "test_inner_products_are_unbiased_over_seeds"
ADJOINT = "test_the_adjoint_is_the_transpose"
FORMULA = "test_scores_are_the_formula_in_the_small_space_with_damping_added_after_projection"
COVERED = "test_intervals_of_95_percent_cover_the_true_inner_product"


@seen_by("test_sketches", UNBIASED, "coordinate mask", 3)
@seen_by("test_sketches", UNBIASED, "factor mask", 3)
@seen_by("test_sketches", UNBIASED, "mask + sjlt", 8)
def scale_of_a_mask_missing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sketches, "_scale", lambda whole, layout: 1.0)


@seen_by("test_compression", FORMULA, "coordinate mask", "mlp")
@seen_by("test_compression", "test_a_query_that_is_a_train_point_has_self_influence_over_n_on_itself")
def another_map_for_queries_than_for_train(patch: pytest.MonkeyPatch) -> None:
    queries = Reader.queries

    def wrong(self: Reader[Any], batch: Any) -> Reading:
        right = self._compressor
        assert right is not None
        self._compressor = coordinate_mask(right.of, 4, seed=1)
        try:
            return queries(self, batch)
        finally:
            self._compressor = right

    patch.setattr(Reader, "queries", wrong)


@seen_by("test_compression", FORMULA, "coordinate mask", "positions")
@seen_by("test_compression", FORMULA, "logra", "mlp")
def damping_projected(patch: pytest.MonkeyPatch) -> None:
    """C (F + damping I) C' for C F C' + damping I."""
    fit = Influence.fit

    def wrong(self: Any, train: Any, damping: Damping) -> None:
        fit(self, train, damping)
        c = torch.block_diag(*matrices(self._reader._compressor).values())
        self.curvature._cholesky = torch.linalg.cholesky(self.curvature.matrix + damping.value * c @ c.T)

    patch.setattr(Influence, "fit", wrong)


@seen_by("test_sketches", ADJOINT, "logra", "mlp")
def inverse_taken_for_the_adjoint(patch: pytest.MonkeyPatch) -> None:
    def wrong(self: Sides, gradients: Tensor) -> Tensor:
        assert self.inputs is not None
        outputs, inputs = (torch.linalg.pinv(side.double()) for side in (self.outputs, self.inputs))
        return outputs.T @ gradients @ inputs

    patch.setattr(Sides, "adjoint", wrong)


@seen_by("test_sketches", ADJOINT, "coordinate mask", "conv")
def adjoint_read_by_columns(patch: pytest.MonkeyPatch) -> None:
    after(patch, CoordinateMask, "adjoint", lambda full: full.mT.reshape(full.shape))


@seen_by("test_sketches", "test_factors_are_compressed_as_the_gradients_they_stand_for", "coordinate mask", "positions")
def positions_summed_before_they_are_multiplied(patch: pytest.MonkeyPatch) -> None:
    right = CoordinateMask.__call__

    def wrong(self: CoordinateMask, factor: Any) -> Any:
        return right(self, type(factor)(factor.a.sum(1, keepdim=True), factor.g.sum(-2, keepdim=True)))

    patch.setattr(CoordinateMask, "__call__", wrong)


@seen_by("test_sketches", "test_one_seed_is_one_map_and_blocks_and_seeds_have_their_own", "sjlt")
@seen_by("test_sketches", "test_a_draw_depends_on_seed_and_name_and_not_on_the_process")
def one_draw_for_all_blocks(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(compression, "_generator", lambda seed, name: Generator().manual_seed(seed))


@seen_by("test_compression", "test_two_ranks_have_the_scores_of_one", "factor mask")
@seen_by("test_compression", "test_the_map_is_the_same_for_any_batch_size_and_order", "factor mask", "conv")
def drawn_anew_for_every_object(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(compression, "_generator", lambda seed, name: _unseeded())


@seen_by("test_sketches", "test_what_is_kept_entirely_has_no_error", "factor mask")
@seen_by("test_sketches", "test_what_is_kept_entirely_has_no_error", "coordinate mask")
def finite_population_taken_for_an_infinite_one(patch: pytest.MonkeyPatch) -> None:
    for mask in (CoordinateMask, FactorMask):
        patch.setattr(mask, "sampled", (1.0, 1.0) if mask is FactorMask else (1.0, 0.0))


@seen_by("test_sketches", COVERED, "factor mask")
@seen_by("test_sketches", COVERED, "logra")
def columns_taken_as_fixed(patch: pytest.MonkeyPatch) -> None:
    right = compression._products
    patch.setattr(compression, "_products", lambda name, sampled, x, y: right(name, (sampled[0], 0.0), x, y))


def _unseeded() -> Generator:
    generator = Generator()
    generator.seed()
    return generator
