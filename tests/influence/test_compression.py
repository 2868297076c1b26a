"""Compressors under every curvature, and what is refused."""

import math
from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor

from influence import (
    EKFAC,
    KFAC,
    PCG,
    Curvature,
    Damping,
    DualGaussNewton,
    FactorCache,
    Fisher,
    GaussNewton,
    Gradients,
    Identity,
    Influence,
    InfluenceError,
    Reader,
    Reading,
    Share,
    fit,
    last,
    materialise,
    select,
)
from influence.compression import (
    Compressor,
    coordinate_mask,
    factor_mask,
    gaussian,
    principal_logra,
)
from influence.sketches import Buckets, SmallLayout
from tests.influence.cases import (
    ABSOLUTE,
    TASK,
    label_gradients,
    on_two_ranks,
    per_point_gradients,
    split,
)
from tests.influence.compressors import (
    DRAWN,
    EXACT,
    MODELS,
    SCORES,
    VECTORS,
    Make,
    block,
    compressor,
    every_drawn,
    every_kind,
    every_model,
    gradients,
    matrices,
    rows,
    scores,
)


@every_model
@pytest.mark.parametrize("make", [coordinate_mask, factor_mask])
@pytest.mark.parametrize("curvature", [GaussNewton, DualGaussNewton, PCG, Identity])
def test_a_mask_that_keeps_everything_changes_no_score(
    make: Make, curvature: Callable[..., Curvature], case: str
) -> None:
    small = make(select(MODELS[case][0]), 1)
    found, truth = scores(case, curvature(small.blocks), small), scores(case, curvature(select(MODELS[case][0])), None)
    tight = {"rtol": 1e-10, "atol": 1e-10} if curvature is not PCG else {"rtol": 1e-5, "atol": 1e-5}  # its tolerance
    torch.testing.assert_close(found.influence, truth.influence, **tight)
    torch.testing.assert_close(found.self_influence, truth.self_influence, **tight)


@every_model
def test_a_factor_mask_that_keeps_everything_leaves_ekfac_as_it_was(case: str) -> None:
    blocks = select(MODELS[case][0])
    small = factor_mask(blocks, 1)
    found, truth = scores(case, EKFAC(small.blocks), small), scores(case, EKFAC(blocks), None)
    torch.testing.assert_close(found.influence, truth.influence, **EXACT)
    torch.testing.assert_close(found.self_influence, truth.self_influence, **EXACT)


@every_kind
@every_model
def test_scores_are_the_formula_in_the_small_space_with_damping_added_after_projection(kind: str, case: str) -> None:
    model, train, queries = MODELS[case]
    small = compressor(kind, case)
    matrix = torch.block_diag(*matrices(small).values())
    j = rows(label_gradients(model, train), 2).flatten(0, 1) @ matrix.T
    g, q = (rows(per_point_gradients(model, batch), 1) @ matrix.T for batch in (train, queries))
    h = j.T @ j / 30 + ABSOLUTE.value * torch.eye(j.shape[1], dtype=torch.float64)
    solved = g @ torch.linalg.inv(h)
    found = scores(case, GaussNewton(small.blocks), small)
    torch.testing.assert_close(found.influence, solved @ q.T / 30, **SCORES)
    torch.testing.assert_close(found.self_influence, (solved * g).sum(1), **SCORES)


@pytest.mark.parametrize("kind", [*VECTORS, "mask + sjlt"])
@every_model
def test_ekfac_of_vectors_is_exact_gauss_newton_of_each_block(kind: str, case: str) -> None:
    small = compressor(kind, case)
    model = MODELS[case][0]
    found = scores(case, EKFAC(small.blocks), small)
    alone = []
    for one in select(model):
        own = Compressor((one,), {one.name: small.sketches[one.name]})
        with Influence(model, TASK, GaussNewton(own.blocks), (one,), compressor=own) as influence:
            influence.fit(split(MODELS[case][1], 7), ABSOLUTE)
            alone.append(influence.pairs(split(MODELS[case][1], 7), split(MODELS[case][2], 4)))
    truth = alone[0]
    for other in alone[1:]:
        truth = truth + other
    torch.testing.assert_close(found.influence, truth.influence, **SCORES)
    torch.testing.assert_close(found.own.squared_step, truth.own.squared_step, **SCORES)


@every_kind
@pytest.mark.parametrize("case", ["conv", "positions"])
def test_the_map_is_the_same_for_any_batch_size_and_order(kind: str, case: str) -> None:
    model, (x, y), queries = MODELS[case]
    small = compressor(kind, case)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    truth = scores(case, EKFAC(small.blocks), small)
    again = compressor(kind, case)
    with Influence(model, TASK, EKFAC(again.blocks), select(model), compressor=again) as influence:
        influence.fit(split((x[order], y[order]), 4), ABSOLUTE)
        found = influence.pairs([(x[order], y[order])], [queries])
    torch.testing.assert_close(found.influence, truth.influence[order], **SCORES)


@pytest.mark.parametrize("kind", ["coordinate mask", "factor mask"])
def test_self_influence_of_an_unscaled_mask_is_a_lower_bound_and_grows_with_what_is_kept(kind: str) -> None:
    model, train, queries = MODELS["mlp"]
    blocks = select(model, last(1))
    damping = ABSOLUTE.value

    def own(small: Compressor) -> Tensor:
        scale = blocks[0].parameters / small.blocks[0].parameters  # times this the damping is that of a scale of 1
        with Influence(model, TASK, GaussNewton(small.blocks), blocks, compressor=small) as influence:
            influence.fit([train], Damping("absolute", damping * scale))
            return influence.pairs([train], [queries]).self_influence

    half, whole = own(DRAWN[kind](blocks, 2)), own(DRAWN[kind](blocks, 1))
    assert (half <= whole * (1 + 1e-9)).all()
    assert (half < 0.99 * whole).any()


@pytest.mark.parametrize("curvature", [EKFAC, KFAC, GaussNewton, DualGaussNewton, PCG, Identity])
def test_an_empty_bucket_leaves_a_matrix_that_is_positive_definite(curvature: Callable[..., Curvature]) -> None:
    model, train, queries = MODELS["mlp"]
    blocks = select(model, last(1))
    (one,) = blocks
    bucket, sign = torch.arange(one.parameters) % 4, torch.ones(one.parameters)  # the fifth stays empty
    small = Compressor(blocks, {one.name: Buckets(bucket, sign, one.weight_shape, SmallLayout((5, 1), free=True))})
    found = curvature(small.blocks)
    with Influence(model, TASK, found, blocks, compressor=small) as influence:
        influence.fit([train], ABSOLUTE)
        assert torch.isfinite(influence.pairs([train], [queries]).influence).all()
    unit = torch.eye(5, dtype=torch.float64)
    inverse = found.solve({one.name: unit[:, :, None]})[one.name][..., 0]
    torch.testing.assert_close(inverse[4], unit[4] / ABSOLUTE.value, rtol=1e-5, atol=1e-5)  # what PCG is good to
    assert torch.linalg.eigvalsh((inverse + inverse.T) / 2).min() > 0


@every_kind
def test_two_ranks_have_the_scores_of_one(kind: str) -> None:
    model, train, queries = MODELS["mlp"]
    pieces, compressors = split(train, 7), [compressor(kind, "mlp") for _ in range(3)]

    def program(share: Share, all_reduce: Callable[[Tensor], None]) -> Gradients:
        small, own = compressors.pop(), deepcopy(model)  # a process has its own
        curvature = EKFAC(small.blocks, share)
        with Reader(own, TASK, select(own), compressor=small) as reader:
            taken = [reader.train(pieces[c], c, torch.arange(len(pieces[c][1]))) for c in share.of(len(pieces))]
            asked = gradients(reader.queries(queries).losses)

        def passes() -> list[tuple[Reading, Tensor]]:
            return [(one, torch.ones(len(one.labels))) for one in taken]

        fit([curvature], passes, all_reduce)
        curvature.finish(ABSOLUTE)
        return curvature.solve(asked)

    truth = program(Share(), lambda tensor: None)
    for found in on_two_ranks(program):
        for name, full in truth.items():
            torch.testing.assert_close(found[name], full, **SCORES)


@every_kind
@pytest.mark.parametrize("case", ["positions"])
def test_the_cache_holds_what_is_small_and_changes_nothing(kind: str, case: str) -> None:
    small, again = compressor(kind, case), compressor(kind, case)
    truth = scores(case, EKFAC(small.blocks), small)
    cache = FactorCache(1 << 20)
    found = scores(case, EKFAC(again.blocks), again, cache=cache)
    assert found.influence.equal(truth.influence)
    kept = cache.get(0)
    assert kept is not None
    for one in small.blocks:
        assert (kept.losses[one.name].g.shape[-1], kept.losses[one.name].a.shape[-1]) == one.weight_shape


@every_kind
@pytest.mark.parametrize("case", ["free", "positions"])
def test_a_model_in_float32_is_scored_as_one_in_float64(kind: str, case: str) -> None:
    model, (x, y), queries = MODELS[case]
    single, small = deepcopy(model).float(), compressor(kind, case)
    with Influence(single, TASK, EKFAC(small.blocks), select(single), compressor=small) as influence:
        influence.fit(split((x.float(), y), 7), ABSOLUTE)
        found = influence.pairs([(x.float(), y)], [(queries[0].float(), queries[1])])
    truth = scores(case, EKFAC(small.blocks), small)
    scale = truth.influence.abs().max()
    # Factors are rounded to 6e-8; inverse eigenvalues of up to 1/damping = 100 magnify that.
    torch.testing.assert_close(found.influence / scale, truth.influence / scale, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.self_influence, truth.self_influence, rtol=1e-4, atol=1e-6)


@every_drawn
def test_the_trace_of_the_curvature_is_unbiased_so_its_mean_eigenvalue_is_ratio_times_as_large(kind: str) -> None:
    model, train, _ = MODELS["mlp"]
    blocks = select(model, last(1))  # [3, 5]: 15 entries, of which sides may keep 2 x 3, and others 4
    with Reader(model, TASK, blocks) as reader:
        roots = reader.train(train, 0, torch.arange(30)).roots
    assert roots is not None
    truth = materialise(roots[blocks[0].name]).square().sum()
    found = []
    for seed in range(1000):
        small = DRAWN[kind](blocks, 4, seed)
        found.append(materialise(small(roots)[blocks[0].name]).square().sum())
    traces = torch.stack(found)
    assert (traces.mean() - truth).abs() < 4 * traces.std() / math.sqrt(1000)  # 4 sigma


@every_kind
def test_groups_are_means_of_pairs(kind: str) -> None:
    model, train, queries = MODELS["positions"]
    small = compressor(kind, "positions")
    pairs = scores("positions", EKFAC(small.blocks), small)
    with Influence(model, TASK, EKFAC(small.blocks), select(model), compressor=small) as influence:
        influence.fit(split(train, 7), ABSOLUTE)
        found = influence.groups(split(train, 7), split(queries, 4), queries[1], 3)
    torch.testing.assert_close(found.mean, pairs.influence.mean(1), **SCORES)


@every_kind
def test_a_head_read_without_a_backward_pass_is_compressed_too(kind: str) -> None:
    model, train, _ = MODELS["mlp"]
    blocks = select(model, last(1))
    (name,) = (one.name for one in blocks)
    small = compressor(kind, "mlp")
    head = Compressor(blocks, {name: small.sketches[name]})
    readings = []
    for some, one in ((select(model), small), (blocks, head)):
        with Reader(model, TASK, some, Fisher(), compressor=one) as reader:
            readings.append(reader.train(train, 0, torch.arange(30)))
    for left, right in zip(*([r.losses[name], r.roots[name]] for r in readings if r.roots is not None)):
        torch.testing.assert_close(materialise(left), materialise(right), **EXACT)


def test_a_query_that_is_a_train_point_has_self_influence_over_n_on_itself() -> None:
    """Only if train points and queries go through the same map."""
    model, train, _ = MODELS["mlp"]
    for make in DRAWN.values():
        small = make(select(model), 4)
        with Influence(model, TASK, EKFAC(small.blocks), select(model), compressor=small) as influence:
            influence.fit([train], ABSOLUTE)
            found = influence.pairs([train], [train])
        torch.testing.assert_close(found.influence.diagonal(), found.self_influence / 30, **SCORES)


@pytest.mark.parametrize("curvature", [EKFAC, KFAC, GaussNewton, DualGaussNewton, PCG])
@every_kind
def test_a_curvature_made_for_the_models_blocks_is_refused(curvature: Callable[..., Curvature], kind: str) -> None:
    model = MODELS["mlp"][0]
    blocks, small = select(model), compressor(kind, "mlp")
    with pytest.raises(InfluenceError, match=r"compressor\.blocks"):
        Influence(model, TASK, curvature(blocks), blocks, compressor=small)
    with pytest.raises(InfluenceError, match=r"compressor\.blocks"):
        Influence(model, TASK, curvature(small.blocks), blocks)
    with pytest.raises(InfluenceError, match=r"compressor\.blocks"):
        Influence(model, TASK, Identity(blocks[:1]), blocks, compressor=small)


def test_a_compressor_of_other_blocks_is_refused() -> None:
    model = MODELS["mlp"][0]
    small = factor_mask(select(model, last(1)), 4)
    with pytest.raises(InfluenceError, match="compressor was made for 4"):
        Reader(model, TASK, select(model), compressor=small)


def test_compressed_blocks_read_no_model() -> None:
    model, train, _ = MODELS["mlp"]
    small = factor_mask(select(model), 4)
    with Reader(model, TASK, small.blocks) as reader, pytest.raises(InfluenceError, match="of no layer"):
        reader.losses(train)


def test_a_gaussian_matrix_that_would_fill_the_memory_is_refused_before_it_is_drawn() -> None:
    with pytest.raises(InfluenceError, match="use SJLT, LoGra or a mask"):
        gaussian(block(5000, 5000), 16)


def test_principal_logra_takes_a_fitted_kfac_of_its_blocks() -> None:
    blocks = select(MODELS["mlp"][0])
    with pytest.raises(InfluenceError, match="KFAC has made 0 of its 1 passes"):
        principal_logra(blocks, 4, KFAC(blocks))
    with pytest.raises(InfluenceError, match="made for"):
        principal_logra(blocks, 4, KFAC(blocks[:1]))
