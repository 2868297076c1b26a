from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from influence import (
    FactorSource,
    InfluenceError,
    NotFinite,
    NotPerPoint,
    check_cross_entropy,
    gradients,
    head,
    head_outputs,
    linear_blocks,
    materialise,
    select,
)
from tests.influence.cases import (
    Batch,
    label_gradients,
    logits,
    loss,
    loss_factors,
    mlp,
    over_positions,
    per_point_gradients,
    points,
)

MODELS = {
    "mlp": (mlp(), points(7)),
    "no bias": (mlp(bias=False), points(7)),
    "in-place activation": (mlp(inplace=True), points(7)),
    "positions": (over_positions(), points(7, positions=4)),
}


@pytest.mark.parametrize("case", MODELS)
def test_factors_are_the_per_point_gradients_of_torch_func(case: str) -> None:
    model, batch = MODELS[case]
    truth = per_point_gradients(model, batch)
    for name, factor in loss_factors(model, batch).items():
        torch.testing.assert_close(materialise(factor), truth[name], rtol=0, atol=1e-12)  # rounding, float64


def test_factors_are_the_per_point_gradients_in_float32() -> None:
    model, (x, y) = mlp().float(), points(7)
    truth = per_point_gradients(model, (x.float(), y))
    for name, factor in loss_factors(model, (x.float(), y)).items():
        torch.testing.assert_close(materialise(factor), truth[name], rtol=0, atol=1e-6)  # rounding, float32


def test_label_factors_are_the_roots_of_each_points_gauss_newton_matrix() -> None:
    model, batch = over_positions(), points(6, positions=4)
    truth = label_gradients(model, batch)
    with FactorSource(model, linear_blocks(model)) as source:
        found = gradients.label_factors(source, source.forward(logits, batch))
    for name, factor in found.items():
        g = torch.einsum("cbto,bti->bcoi", factor.g, factor.a)
        torch.testing.assert_close(g, truth[name], rtol=0, atol=1e-12)


def test_a_point_has_the_same_factors_in_any_batch_and_order() -> None:
    model, (x, y) = MODELS["positions"]
    whole = loss_factors(model, (x, y))
    order = torch.tensor([4, 0, 6, 2, 1, 5, 3])
    for rows in (order, order[:1], order[2:5]):
        for name, factor in loss_factors(model, (x[rows], y[rows])).items():
            torch.testing.assert_close(factor.g, whole[name].g[rows], rtol=0, atol=1e-14)
            torch.testing.assert_close(factor.a, whole[name].a[rows], rtol=0, atol=1e-14)


def test_dropout_is_off_while_the_source_is_open() -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.Dropout(0.5), nn.Linear(6, 3)).double()
    first, second = (loss_factors(model, points(7)) for _ in range(2))
    assert first["0"].g.equal(second["0"].g)


def test_the_model_is_restored_on_exit_and_after_an_error() -> None:
    model = mlp()
    model[2].eval()
    model[0].weight.requires_grad_(False)

    def state() -> tuple[list[bool], list[bool], list[int]]:
        modules = list(model.modules())
        return (
            [module.training for module in modules],
            [parameter.requires_grad for parameter in model.parameters()],
            [len(module._forward_hooks) for module in modules],
        )

    before = state()
    with FactorSource(model, linear_blocks(model)):
        assert state() != before
    assert state() == before
    with pytest.raises(NotPerPoint), FactorSource(model, linear_blocks(model)) as source:
        source.pull(source.forward(lambda m, batch: loss(m, batch).mean(), points(7)))
    assert state() == before


@pytest.mark.parametrize("reduce", [torch.mean, lambda values: values[:, None], lambda values: values[:3]])
def test_a_loss_that_is_not_per_point_is_refused(reduce: Callable[[Tensor], Tensor]) -> None:
    model = mlp()
    with FactorSource(model, linear_blocks(model)) as source:
        losses = source.forward(loss, points(7))
        with pytest.raises(NotPerPoint):
            source.pull(reduce(losses))


def test_a_loss_that_is_nan_names_the_row() -> None:
    model, (x, y) = mlp(), points(7)
    x[4] = torch.nan
    with pytest.raises(NotFinite, match="row 4") as caught:
        loss_factors(model, (x, y))
    assert (caught.value.block, caught.value.row) == ("loss", 4)


def test_a_gradient_that_is_nan_names_the_block_and_the_row() -> None:
    def bad_gradient(model: nn.Module, batch: Batch) -> Tensor:
        values = loss(model, batch)
        steep = (values[2:3] - values[2:3].detach()).sqrt()  # 0, with an infinite slope
        return values.index_add(0, torch.tensor([2]), steep)

    model = mlp()
    with pytest.raises(NotFinite, match="row 2") as caught, FactorSource(model, linear_blocks(model)[:1]) as source:
        source.pull(source.forward(bad_gradient, points(7)))
    assert caught.value.block == "0"


def test_a_layer_called_twice_or_never_is_refused() -> None:
    model = mlp(classes=5)
    with FactorSource(model, linear_blocks(model)) as source:
        with pytest.raises(InfluenceError, match="'0' is called twice"):
            source.forward(lambda m, batch: loss(m, (m(batch[0]), batch[1])), points(7))
        with pytest.raises(InfluenceError, match="'4' is not called"):
            source.forward(lambda m, batch: m[2](m[0](batch[0])).sum(1), points(7))


def test_a_call_of_the_model_outside_forward_captures_nothing() -> None:
    model, batch = MODELS["mlp"]
    truth = loss_factors(model, batch)
    with FactorSource(model, linear_blocks(model)) as source:
        losses = source.forward(loss, batch)
        assert not model(batch[0][:3]).requires_grad
        assert source.pull(losses)["0"].g.equal(truth["0"].g)


def test_a_loss_without_a_gradient_is_refused() -> None:
    model = mlp()
    with FactorSource(model, linear_blocks(model)) as source:
        losses = source.forward(loss, points(7))
        with pytest.raises(InfluenceError, match="carry no gradient"):
            source.pull(losses.detach())
        with pytest.raises(InfluenceError, match="do not depend on block '0'"):
            source.pull(losses.detach().requires_grad_())


def test_the_heads_closed_form_is_its_backward() -> None:
    model, batch = MODELS["mlp"]
    with FactorSource(model, select(model, ["4"])) as source:
        closed = head_outputs(source, head(model), source.forward(logits, batch)).loss_factors(batch[1])
    pulled = loss_factors(model, batch)["4"]
    torch.testing.assert_close(materialise(closed["4"]), materialise(pulled), rtol=0, atol=1e-14)


def test_a_head_whose_outputs_are_scaled_into_logits_is_refused() -> None:
    model, batch = MODELS["mlp"]
    with (
        FactorSource(model, linear_blocks(model)) as source,
        pytest.raises(InfluenceError, match="no softmax head"),
    ):
        head_outputs(source, head(model), source.forward(logits, batch) / 2)


def test_a_loss_that_is_not_the_cross_entropy_is_refused() -> None:
    model, batch = MODELS["mlp"]
    values, z = loss(model, batch), logits(model, batch)
    check_cross_entropy(values, z, batch[1])
    with pytest.raises(InfluenceError, match="not the cross-entropy"):
        check_cross_entropy(values * 1.1, z, batch[1])
