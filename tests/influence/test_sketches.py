"""Compressors on known gradients: what the map is, and how far off its inner products are."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from influence import (
    EKFAC,
    KFAC,
    InfluenceError,
    Reader,
    compression,
    last,
    materialise,
    select,
)
from influence.compression import (
    coordinate_mask,
    inner_products,
    masked_sjlt,
    principal_logra,
    sjlt,
)
from influence.sketches import Buckets, Chain
from tests.influence.cases import (
    TASK,
    fitted,
    label_gradients,
    over_positions,
    per_point_gradients,
    points,
)
from tests.influence.compressors import (
    DRAWN,
    EXACT,
    MODELS,
    SIDES,
    VECTORS,
    block,
    compressed,
    compressor,
    every_drawn,
    every_kind,
    every_model,
    gradients,
    inner,
    matrices,
    normal,
    scores,
)


@every_kind
@every_model
def test_the_adjoint_is_the_transpose(kind: str, case: str) -> None:
    model, train, _ = MODELS[case]
    small = compressor(kind, case)
    with Reader(model, TASK, select(model)) as reader:
        x = reader.losses(train).losses
    shapes = {one.name: one.weight_shape for one in small.blocks}
    y = {name: normal(30, *shape) for name, shape in shapes.items()}
    torch.testing.assert_close(inner(gradients(small(x)), y), inner(gradients(x), small.adjoint(y)), **EXACT)


@every_kind
@every_model
def test_factors_are_compressed_as_the_gradients_they_stand_for(kind: str, case: str) -> None:
    model, train, queries = MODELS[case]
    small = compressor(kind, case)
    matrix = matrices(small)
    losses, roots = per_point_gradients(model, train), label_gradients(model, train)
    with Reader(model, TASK, select(model), compressor=small) as reader:
        reading, asked = reader.train(train, 0, torch.arange(30)), reader.queries(queries)
    assert reading.roots is not None
    for one in small.blocks:
        of_losses = materialise(reading.losses[one.name])
        of_roots = materialise(reading.roots[one.name])
        assert of_losses.shape[1:] == one.weight_shape
        c = matrix[one.name].T
        torch.testing.assert_close(of_losses.flatten(1), losses[one.name].flatten(1) @ c, **EXACT)
        wanted = roots[one.name].transpose(0, 1).flatten(2) @ c  # [C, B, o' i']
        # Roots may differ in sign; what is fitted is the sum of their outer products.
        found = of_roots.flatten(2)
        moments = [torch.einsum("rbi,rbj->bij", full, full) for full in (found, wanted)]
        torch.testing.assert_close(*moments, **EXACT)
        assert materialise(asked.losses[one.name]).shape == (9, *one.weight_shape)


@every_drawn
@pytest.mark.parametrize("ratio", [3, 8])
def test_inner_products_are_unbiased_over_seeds(kind: str, ratio: float) -> None:
    full = normal(2, 6, 7)
    full[1] += full[0]
    truth = (full[0] * full[1]).sum()
    found = []
    for seed in range(2000):
        x, y = compressed(DRAWN[kind](block(6, 7), ratio, seed), full)
        found.append((x * y).sum())
    values = torch.stack(found)
    assert (values.mean() - truth).abs() < 4 * values.std() / math.sqrt(2000)  # 4 sigma


@every_kind
@pytest.mark.parametrize("ratio", [0.5, 0, -1, math.nan, math.inf])
def test_a_ratio_below_one_or_no_number_is_refused(kind: str, ratio: float) -> None:
    with pytest.raises(InfluenceError, match="how many times smaller"):
        compressor(kind, "mlp", ratio)


@every_kind
def test_a_block_keeps_at_least_one_entry(kind: str) -> None:
    small = compressor(kind, "mlp", 1e9)
    assert all(one.weight_shape == (1, 1) for one in small.blocks)
    assert torch.isfinite(scores("mlp", EKFAC(small.blocks), small).influence).all()


@every_drawn
def test_a_size_is_so_many_times_smaller_up_to_rounding(kind: str) -> None:
    (one,) = DRAWN[kind](block(64, 96), 16).blocks
    assert one.parameters == 384


@every_drawn
def test_one_seed_is_one_map_and_blocks_and_seeds_have_their_own(kind: str) -> None:
    twins = (replace(block(6, 7)[0], name="a"), replace(block(6, 7)[0], name="b"))
    first, again, other = (matrices(DRAWN[kind](twins, 4, seed)) for seed in (0, 0, 1))
    assert first["a"].equal(again["a"])
    assert not first["a"].equal(first["b"])
    assert not first["a"].equal(other["a"])
    assert matrices(DRAWN[kind](twins[1:], 4, 0))["b"].equal(first["b"])  # whatever other blocks there are


def test_a_draw_depends_on_seed_and_name_and_not_on_the_process() -> None:
    """Python's own hash would: every rank would draw its own mask."""
    assert compression._generator(3, "block").initial_seed() == 3611547796026654  # of "3 block" by sha256sum


def test_principal_logra_is_exact_on_gradients_within_its_eigenvectors() -> None:
    model, train = over_positions(), points(3, positions=2)
    blocks = select(model, last(1))  # 3 points have inputs in 3 of 5 dimensions
    kfac = KFAC(blocks)
    fitted(kfac, model, train)
    small = principal_logra(blocks, (5 / 3) ** 2 * 0.99, kfac)
    with Reader(model, TASK, blocks) as reader:
        factors = reader.losses(train).losses
    full, less = (materialise(one["head"]).flatten(1) for one in (factors, small(factors)))
    assert less.shape[1] < full.shape[1]
    torch.testing.assert_close(less @ less.T, full @ full.T, **EXACT)


@pytest.mark.parametrize("kind", [*VECTORS, *SIDES])
def test_intervals_of_95_percent_cover_the_true_inner_product(kind: str) -> None:
    full = normal(2, 40, 50)
    full[1] += 0.5 * full[0]
    truth = float((full[0] * full[1]).sum())
    inside, errors, values = 0, [], []
    for seed in range(400):
        small = DRAWN[kind](block(40, 50), 8, seed)
        x, y = compressed(small, full)
        found = inner_products(small, {"block": x[None]}, {"block": y[None]})
        inside += abs(float(found.values) - truth) <= 1.96 * float(found.errors)
        errors.append(float(found.errors))
        values.append(float(found.values))
    assert inside >= 0.9 * 400
    spread = torch.tensor(values).std()  # known to 1 / sqrt(2 * 400) = 3.5 %
    mean = torch.tensor(errors).square().mean().sqrt()
    too_wide = 1.35 if kind in SIDES else 1.19  # as derived, 1.24 for sides; else 1.00 to 1.08, and chance 3 x 3.5 %
    assert 0.88 * spread < mean < too_wide * spread


@pytest.mark.parametrize("kind", ["coordinate mask", "factor mask"])
def test_what_is_kept_entirely_has_no_error(kind: str) -> None:
    small = DRAWN[kind](block(6, 7), 1)
    x, y = compressed(small, normal(2, 6, 7))
    assert float(inner_products(small, {"block": x[None]}, {"block": y[None]}).errors) == 0


@pytest.mark.parametrize("kind", [*VECTORS, *SIDES])
def test_one_term_tells_nothing_of_its_error(kind: str) -> None:
    small = DRAWN[kind](block(6, 7), 1000)
    x, y = compressed(small, normal(2, 6, 7))
    assert float(inner_products(small, {"block": x[None]}, {"block": y[None]}).errors) == math.inf


@pytest.mark.parametrize("kind", ["mask + sjlt", "principal"])
def test_an_error_that_cannot_be_told_is_refused(kind: str) -> None:
    small = compressor(kind, "mlp")
    shapes = {one.name: one.weight_shape for one in small.blocks}
    some = {name: normal(2, *shape) for name, shape in shapes.items()}
    with pytest.raises(InfluenceError, match="does not tell its error"):
        inner_products(small, some, some)


def test_all_blocks_together_are_so_many_times_smaller_and_the_small_ones_stay_whole() -> None:
    torch.manual_seed(0)
    blocks = select(nn.Sequential(nn.Linear(399, 100), nn.Linear(99, 100), nn.Linear(99, 3)))  # 40,000, 10,000 and 300
    small = coordinate_mask(blocks, 4)
    assert [block.parameters for block in small.blocks] == [6138, 6138, 300]  # (50,300 / 4 - 300) / 2, rounded up


def test_the_tables_of_mask_and_sjlt_are_of_what_the_mask_leaves_and_those_of_sjlt_of_every_parameter() -> None:
    blocks = select(nn.Sequential(nn.Linear(399, 100)))  # 40,000 parameters
    whole, masked = sjlt(blocks, 64).sketches["0"], masked_sjlt(blocks, 64).sketches["0"]
    assert isinstance(whole, Buckets)
    assert isinstance(masked, Chain)
    assert isinstance(masked.second, Buckets)
    assert whole.layout.shape == masked.layout.shape
    assert (whole.bucket.nbytes + whole.sign.nbytes, len(masked.second.bucket)) == (12 * 40_000, 40_000 * 4 // 64)
