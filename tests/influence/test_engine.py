from collections.abc import Iterator
from copy import deepcopy
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from influence import (
    EKFAC,
    KFAC,
    Blocks,
    Curvature,
    Damping,
    FactorSource,
    Fisher,
    GaussNewton,
    Influence,
    InfluenceError,
    NotFinite,
    PairScores,
    Reader,
    Reading,
    Task,
    by_name,
    fit,
    last,
    relative_influence,
    select,
)
from tests.influence.cases import (
    ABSOLUTE,
    TASK,
    Batch,
    conv_net,
    ekfac,
    fitted,
    images,
    label_gradients,
    loss_factors,
    mlp,
    over_positions,
    per_point_gradients,
    points,
    read,
    split,
)

EXACT = {"rtol": 1e-9, "atol": 1e-9}  # float64, influence of order 1 through inverses of order 100

MODELS = {
    "mlp": (mlp(), points(30), points(9, seed=2)),
    "conv": (conv_net(), images(30), images(9, seed=2)),
    "positions": (over_positions(), points(30, positions=4), points(9, positions=4, seed=2)),
}
every_model = pytest.mark.parametrize("case", MODELS)


def rows(gradients: dict[str, Tensor], keep: int) -> Tensor:
    """All blocks side by side: [B, p] for keep = 1, [B, R, p] for keep = 2."""
    return torch.cat([gradient.flatten(keep) for gradient in gradients.values()], keep)


def influence_of(case: str, curvature: Curvature, fisher: Fisher | None = None, size: int = 7) -> PairScores:
    model, train, queries = MODELS[case]
    with Influence(model, TASK, curvature, select(model), fisher) as influence:
        influence.fit(split(train, size), ABSOLUTE)
        return influence.pairs(split(train, size), split(queries, 4))


def by_the_formula(case: str, inverse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Influence, self-influence and squared step from torch.func's gradients and an inverse [p, p]."""
    model, train, queries = MODELS[case]
    g, right = rows(per_point_gradients(model, train), 1), rows(per_point_gradients(model, queries), 1)
    step = g @ inverse
    return step @ right.T / 30, (step * g).sum(1), step.square().sum(1)


def eigenvalue_corrected(case: str) -> Tensor:
    """The inverse of EK-FAC's matrix, written down once more without the engine's algebra, [p, p]."""
    model, train, _ = MODELS[case]
    roots, labels, parts = read(model, train).roots, label_gradients(model, train), []
    assert roots is not None
    for name, factor in roots.items():
        s, a = factor.g.flatten(0, 2), factor.a.flatten(0, 1)
        qs, qa = (torch.linalg.eigh(x.T @ x).eigenvectors for x in (s, a))
        q = torch.kron(qs, qa)
        values = (labels[name].flatten(2) @ q).square().sum(1).mean(0) + ABSOLUTE.value
        parts.append(q @ torch.diag(1 / values) @ q.T)
    return torch.block_diag(*parts)


@every_model
def test_end_to_end_exact_gauss_newton_is_the_formula(case: str) -> None:
    model, train, _ = MODELS[case]
    j = rows(label_gradients(model, train), 2).flatten(0, 1)
    h = j.T @ j / 30 + ABSOLUTE.value * torch.eye(j.shape[1], dtype=torch.float64)
    influence, own, step = by_the_formula(case, torch.linalg.inv(h))
    found = influence_of(case, GaussNewton(select(model)))
    torch.testing.assert_close(found.influence, influence, **EXACT)
    torch.testing.assert_close(found.self_influence, own, **EXACT)
    torch.testing.assert_close(found.own.squared_step, step, **EXACT)


@every_model
def test_end_to_end_ekfac_is_the_formula(case: str) -> None:
    influence, own, step = by_the_formula(case, eigenvalue_corrected(case))
    found = influence_of(case, EKFAC(select(MODELS[case][0])))
    torch.testing.assert_close(found.influence, influence, **EXACT)
    torch.testing.assert_close(found.self_influence, own, **EXACT)
    torch.testing.assert_close(found.own.squared_step, step, **EXACT)


@every_model
@pytest.mark.parametrize("kind", ["exact", "sampled", "empirical"])
def test_results_do_not_depend_on_the_batch_size(case: str, kind: str) -> None:
    fisher, blocks = Fisher(kind), select(MODELS[case][0])  # type: ignore[arg-type]
    found, truth = (influence_of(case, EKFAC(blocks), fisher, size) for size in (4, 30))
    torch.testing.assert_close(found.influence, truth.influence, **EXACT)
    torch.testing.assert_close(found.self_influence, truth.self_influence, **EXACT)


@every_model
def test_groups_are_means_of_pairs_and_carry_relative_influence(case: str) -> None:
    model, train, queries = MODELS[case]
    pairs = influence_of(case, EKFAC(select(model)))
    with Influence(model, TASK, EKFAC(select(model)), select(model)) as influence:
        influence.fit(split(train, 7), ABSOLUTE)
        found = influence.groups(split(train, 7), split(queries, 4), queries[1], 3, step=True)
    for label in queries[1].unique().tolist():
        truth = pairs.influence[:, queries[1] == label].mean(1)
        torch.testing.assert_close(found.influence[:, label], truth, **EXACT)
    torch.testing.assert_close(found.mean, pairs.influence.mean(1), **EXACT)
    relative, truth = (relative_influence(found.mean, own, 30) for own in (found.own, pairs.own))
    torch.testing.assert_close(relative.theta, truth.theta, **EXACT)


@every_model
def test_a_model_in_float32_is_scored_as_one_in_float64(case: str) -> None:
    model, (x, y), queries = MODELS[case]
    single = deepcopy(model).float()
    with Influence(single, TASK, EKFAC(select(single)), select(single)) as influence:
        influence.fit(split((x.float(), y), 7), ABSOLUTE)
        found = influence.pairs([(x.float(), y)], [(queries[0].float(), queries[1])])
    truth = influence_of(case, EKFAC(select(model)))
    scale = truth.influence.abs().max()
    # Factors are rounded to 6e-8; inverse eigenvalues of up to 1/damping = 100 magnify that.
    torch.testing.assert_close(found.influence / scale, truth.influence / scale, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.self_influence, truth.self_influence, rtol=1e-4, atol=0)


@every_model
def test_self_influence_on_fewer_blocks_is_a_lower_bound(case: str) -> None:
    # g' H^-1 g of a principal block is what a Schur complement adds to, never what it takes from.
    model, train, _ = MODELS[case]
    own = []
    for count in range(1, len(select(model)) + 1):
        blocks = select(model, last(count))
        curvature = GaussNewton(blocks)
        fitted(curvature, model, train)
        own.append(curvature.own(loss_factors(model, train, blocks)).self_influence)
    assert all((fewer <= more + 1e-12).all() for fewer, more in pairwise(own))  # rounding


def test_the_model_is_as_it_was_after_use() -> None:
    model = MODELS["mlp"][0].train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    influence_of("mlp", EKFAC(select(model)))
    assert model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_own_terms_that_were_not_asked_for_are_refused_and_change_no_influence() -> None:
    model, train, queries = MODELS["mlp"]
    blocks = select(model)
    with Influence(model, TASK, EKFAC(blocks), blocks) as influence:
        influence.fit(split(train, 7), ABSOLUTE)
        both, alone = (influence.pairs(split(train, 7), split(queries, 7), own=own) for own in (True, False))
    torch.testing.assert_close(alone.influence, both.influence, **EXACT)
    with pytest.raises(InfluenceError, match="score with own=True"):
        _ = alone.self_influence


def test_scores_before_fit_are_refused() -> None:
    model, train, queries = MODELS["mlp"]
    with (
        Influence(model, TASK, EKFAC(select(model)), select(model)) as influence,
        pytest.raises(InfluenceError, match="call fit"),
    ):
        influence.pairs([train], [queries])


def test_keys_that_are_not_one_each_are_refused() -> None:
    model = mlp()
    blocks = select(model)
    with (
        Influence(model, TASK, EKFAC(blocks), blocks, Fisher("sampled")) as influence,
        pytest.raises(InfluenceError, match=r"^3 keys given for 4 train points; give one each$"),
    ):
        influence.fit([points(4)], ABSOLUTE, torch.arange(3))


def test_batches_that_can_be_read_only_once_are_refused() -> None:
    model, train, queries = MODELS["mlp"]
    blocks = select(model)
    with Influence(model, TASK, EKFAC(blocks), blocks) as influence:
        with pytest.raises(InfluenceError, match="a generator can be read once"):
            influence.fit((batch for batch in split(train, 7)), ABSOLUTE)
        influence.fit(split(train, 7), ABSOLUTE)
        with pytest.raises(InfluenceError, match="can be read once"):
            influence.pairs(split(train, 7), iter(split(queries, 7)))


def test_a_train_point_that_is_nan_is_named_by_its_row() -> None:
    model, (x, y), _ = MODELS["mlp"]
    x = x.clone()
    x[4] = torch.nan
    with (
        Influence(model, TASK, EKFAC(select(model)), select(model)) as influence,
        pytest.raises(NotFinite, match="row 4") as caught,
    ):
        influence.fit([(x, y)], ABSOLUTE)
    assert (caught.value.block, caught.value.row) == ("logits", 4)


def test_a_gradient_that_is_nan_names_the_block_and_the_row() -> None:
    def steep(model: nn.Module, batch: Batch) -> Tensor:
        z = TASK.logits(model, batch)
        zero = (z[2:3] - z[2:3].detach()).sqrt()  # 0, with an infinite slope
        return z.index_add(0, torch.tensor([2]), zero)

    model, train, _ = MODELS["mlp"]
    blocks = select(model, by_name("0", "2"))
    with Reader(model, Task(steep, TASK.labels), blocks) as reader, pytest.raises(NotFinite, match="row 2") as caught:
        reader.losses(train)
    assert caught.value.block in ("0", "2")


@every_model
def test_the_head_alone_needs_no_backward_pass_and_gives_the_same(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, train, _ = MODELS[case]
    head = select(model, last(1))
    whole = read(model, train)
    monkeypatch.setattr(FactorSource, "_backward", None)
    alone = read(model, train, head)
    assert alone.roots is not None
    assert whole.roots is not None
    name = head[0].name
    for found, truth in ((alone.losses[name], whole.losses[name]), (alone.roots[name], whole.roots[name])):
        torch.testing.assert_close(found.g, truth.g, rtol=0, atol=1e-14)  # rounding, entries below 1
        assert found.a.equal(truth.a)


def test_a_last_layer_whose_outputs_are_not_the_logits_is_not_taken_for_the_head() -> None:
    model, train, _ = MODELS["mlp"]
    halved = Task(lambda m, batch: TASK.logits(m, batch) / 2, TASK.labels)
    with Reader(model, halved, select(model, last(1))) as reader:
        found = reader.losses(train)
    p = (TASK.logits(model, train) / 2).softmax(1)
    residual = (p - nn.functional.one_hot(train[1], 3)).detach()
    torch.testing.assert_close(found.losses["4"].g[:, 0], residual / 2, rtol=0, atol=1e-12)


def test_curvatures_on_different_blocks_are_fitted_in_the_same_passes() -> None:
    model, train, _ = MODELS["mlp"]
    head, body = select(model, last(1)), select(model, by_name("0", "2"))
    together: list[Curvature] = [GaussNewton(head), EKFAC(body), KFAC(select(model))]
    turns = 0
    with Reader(model, TASK, select(model)) as reader:

        def passes() -> Iterator[tuple[Reading, Tensor]]:
            nonlocal turns
            turns += 1
            yield reader.train(train, 0, torch.arange(30)), torch.ones(30)

        fit(together, passes)
    assert turns == 2
    for curvature, blocks in zip(together, (head, body, select(model)), strict=True):
        curvature.finish(ABSOLUTE)
        alone = fitted_alone(type(curvature), blocks)
        losses = loss_factors(model, train, blocks)
        found, truth = curvature.own(losses).self_influence, alone.own(losses).self_influence
        torch.testing.assert_close(found, truth, **EXACT)


def test_points_without_roots_cannot_be_fitted_on() -> None:
    model, train, _ = MODELS["mlp"]
    with (
        Reader(model, TASK, select(model)) as reader,
        pytest.raises(InfluenceError, match="read the points with roots=True"),
    ):
        fit([EKFAC(select(model))], lambda: [(reader.losses(train), torch.ones(30))])


def test_a_reader_without_blocks_is_refused() -> None:
    with pytest.raises(InfluenceError, match="no block given"):
        Reader(mlp(), TASK, ())


def test_damping_may_be_changed_after_fit() -> None:
    model, train, queries = MODELS["mlp"]
    other = Damping("absolute", 1.0)
    with Influence(model, TASK, EKFAC(select(model)), select(model)) as influence:
        influence.fit([train], ABSOLUTE)
        influence.curvature.finish(other)
        found = influence.pairs([train], [queries])
    truth = ekfac(model, train, other).own(loss_factors(model, train))
    torch.testing.assert_close(found.self_influence, truth.self_influence, **EXACT)


def fitted_alone(kind: type, blocks: Blocks) -> Curvature:
    model, train, _ = MODELS["mlp"]
    curvature: Curvature = kind(blocks)
    fitted(curvature, model, train)
    return curvature
