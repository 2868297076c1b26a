"""The source of factors: which gradients, what runs, what is restored, what is refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from influence import (
    FactorSource,
    Fisher,
    InfluenceError,
    NotFinite,
    NotPerPoint,
    Reader,
    by_name,
    gradient_energy,
    head,
    last,
    materialise,
    select,
)
from influence.fisher import residuals
from influence.gradients import head_outputs
from influence.objective import check_cross_entropy
from tests.influence.cases import (
    TASK,
    Batch,
    conv_net,
    images,
    label_gradients,
    logits,
    loss,
    mlp,
    over_positions,
    per_point_gradients,
    points,
    read,
)
from tests.influence.layers import assert_equal, pulled

MODELS: dict[str, tuple[nn.Module, Batch]] = {
    "mlp": (mlp(), points(7)),
    "no bias": (mlp(bias=False), points(7)),
    "in-place activation": (mlp(inplace=True), points(7)),
    "positions": (over_positions(), points(7, positions=4)),
    "convolutions": (conv_net(), images(7)),
}


@pytest.mark.parametrize("case", MODELS)
def test_factors_of_all_blocks_are_the_per_point_gradients_of_torch_func(case: str) -> None:
    model, batch = MODELS[case]
    truth = per_point_gradients(model, batch)
    for name, factor in pulled(model, batch).items():
        torch.testing.assert_close(materialise(factor), truth[name], rtol=0, atol=1e-12)  # rounding, float64


def test_many_weightings_are_the_roots_of_each_points_gauss_newton_matrix() -> None:
    model, batch = over_positions(), points(6, positions=4)
    truth = label_gradients(model, batch)
    with FactorSource(model, select(model)) as source:
        z = source.forward(logits, batch)
        p = z.detach().softmax(1)
        found = source.pull_many(z, Fisher().roots(p, batch[1], torch.arange(6)))
        again = source.pull(source.forward(logits, batch), residuals(p, batch[1]))
    for name, factor in found.items():
        g = torch.einsum("rbto,bti->broi", factor.g, factor.a)
        torch.testing.assert_close(g, truth[name], rtol=0, atol=1e-12)
    assert_equal(again, pulled(model, batch), 1e-14)


def test_a_point_has_the_same_factors_in_any_batch_and_order() -> None:
    model, (x, y) = MODELS["positions"]
    whole = pulled(model, (x, y))
    order = torch.tensor([4, 0, 6, 2, 1, 5, 3])
    for rows in (order, order[:1], order[2:5]):
        assert_equal(pulled(model, (x[rows], y[rows])), {name: factor[rows] for name, factor in whole.items()}, 1e-14)


def test_dropout_is_off_while_the_source_is_open() -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.Dropout(0.5), nn.Linear(6, 3)).double()
    first, second = (pulled(model, points(7)) for _ in range(2))
    assert_equal(first, second)


class Forbidden(torch.autograd.Function):
    """The identity, whose backward must not run."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Any) -> Any:
        raise AssertionError("the backward pass went too far")


class Below(nn.Module):
    """A layer, a forbidden backward pass, and a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(5, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(Forbidden.apply(self.first(x))).tanh())


def test_nothing_runs_below_the_earliest_block_even_if_the_points_carry_gradients() -> None:
    model, (x, y) = Below().double(), points(7)
    truth = pulled(model, (x, y), select(model, by_name("second", "head")))
    assert_equal(pulled(model, (x.requires_grad_(), y), select(model, by_name("second", "head"))), truth)
    with pytest.raises(AssertionError, match="too far"):  # the guard guards
        pulled(model, (x, y), select(model, by_name("first")))


def test_no_gradient_of_a_weight_is_formed() -> None:
    model, batch = MODELS["mlp"]
    pulled(model, batch)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_head_alone_needs_no_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = MODELS["convolutions"]
    z = logits(model, batch).detach()
    expected = per_point_gradients(model, batch)["5"], label_gradients(model, batch)["5"]
    monkeypatch.setattr(torch.autograd, "grad", Forbidden.backward)
    reading = read(model, batch, select(model, last(1)))
    with Reader(model, TASK, select(model, last(1))) as reader:
        query = reader.queries(batch).losses["5"]
    assert reading.roots is not None
    torch.testing.assert_close(materialise(reading.losses["5"]), expected[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(materialise(reading.roots["5"]).transpose(0, 1), expected[1], rtol=0, atol=1e-12)
    doubt = 1 - z.softmax(1).gather(1, batch[1][:, None])
    torch.testing.assert_close(materialise(query) * doubt[:, :, None], expected[0], rtol=0, atol=1e-12)


def state(model: nn.Module) -> tuple[list[bool], list[bool], list[int], bool]:
    return (
        [module.training for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        [len(module._forward_hooks) for module in model.modules()],
        torch.backends.mha.get_fastpath_enabled(),
    )


def test_the_model_is_restored_on_exit_and_after_an_error() -> None:
    model = mlp().train()
    model[2].eval()
    model[0].weight.requires_grad_(False)
    before = state(model)
    with FactorSource(model, select(model)):
        assert all(now != then for now, then in zip(state(model), before, strict=True))
    assert state(model) == before
    with pytest.raises(NotPerPoint), FactorSource(model, select(model)) as source:
        source.pull(source.forward(lambda m, batch: loss(m, batch).mean(), points(7)))
    assert state(model) == before
    with pytest.raises(AttributeError), FactorSource(model, [*select(model), None]):  # type: ignore[list-item]
        pass
    assert state(model) == before


def test_sources_that_overlap_leave_the_process_as_it_was() -> None:
    models = mlp().train(), mlp().train()
    before = [state(model) for model in models]
    first, second = (FactorSource(model, select(model)) for model in models)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not torch.backends.mha.get_fastpath_enabled()
    second.__exit__(None, None, None)
    assert [state(model) for model in models] == before


@pytest.mark.parametrize("reduce", [torch.mean, lambda values: values[:, None], lambda values: values[:3]])
def test_a_loss_that_is_not_per_point_is_refused(reduce: Callable[[Tensor], Tensor]) -> None:
    model = mlp()
    with FactorSource(model, select(model)) as source:
        losses = source.forward(loss, points(7))
        with pytest.raises(NotPerPoint):
            source.pull(reduce(losses))


def test_points_that_interact_are_refused() -> None:
    model = mlp()
    with FactorSource(model, select(model)) as source:
        losses = source.forward(loss, points(7))
        with pytest.raises(NotPerPoint, match="row 0 of the outputs depends on other rows of block '0'"):
            source.pull(losses - losses.mean())


def test_a_loss_that_is_nan_names_the_row() -> None:
    model, (x, y) = mlp(), points(7)
    x[4] = torch.nan
    with pytest.raises(NotFinite, match="row 4") as caught:
        pulled(model, (x, y))
    assert (caught.value.block, caught.value.row) == ("loss", 4)


@pytest.mark.parametrize("row", [0, 2])
def test_a_gradient_that_is_nan_names_the_block_and_the_row(row: int) -> None:
    def bad_gradient(model: nn.Module, batch: Batch) -> Tensor:
        values = loss(model, batch)
        steep = (values[row : row + 1] - values[row : row + 1].detach()).sqrt()  # 0, with an infinite slope
        return values.index_add(0, torch.tensor([row]), steep)

    model = mlp()
    with pytest.raises(NotFinite, match=f"row {row}") as caught, FactorSource(model, select(model)[:1]) as source:
        source.pull(source.forward(bad_gradient, points(7)))
    assert caught.value.block == "0"


def test_an_input_that_is_nan_where_no_gradient_is_names_the_block_and_the_row() -> None:
    def masked(model: nn.Module, batch: Batch) -> Tensor:
        h = model.second(model.first(batch[0]).tanh())
        return model.head(torch.where(h.isfinite(), h, 0.0).mean(1)).logsumexp(1)

    model, (x, y) = over_positions(), points(7, positions=4)
    x[3, 1] = torch.nan
    with FactorSource(model, select(model, by_name("second", "head"))) as source:
        values = source.forward(masked, (x, y))
        assert values.isfinite().all()
        with pytest.raises(NotFinite, match="row 3") as caught:
            source.pull(values)
    assert caught.value.block == "second"


def test_a_call_of_the_model_outside_forward_captures_nothing() -> None:
    model, batch = MODELS["mlp"]
    truth = pulled(model, batch)
    with FactorSource(model, select(model)) as source:
        losses = source.forward(loss, batch)
        assert not model(batch[0][:3]).requires_grad
        assert_equal(source.pull(losses), truth)


def test_outputs_without_a_gradient_are_refused() -> None:
    model = mlp()
    with FactorSource(model, select(model)) as source:
        losses = source.forward(loss, points(7))
        with pytest.raises(InfluenceError, match="carry no gradient"):
            source.pull(losses.detach())
        with pytest.raises(InfluenceError, match="do not depend on block '0'"):
            source.pull(losses.detach().requires_grad_())


def test_a_forward_pass_that_trains_is_refused() -> None:
    model = mlp()
    with FactorSource(model, select(model)) as source, pytest.raises(InfluenceError, match="into training mode"):
        source.forward(lambda m, batch: loss(m.train(), batch), points(7))


def test_normalisation_over_the_batch_is_refused_whichever_block_is_selected() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 3)).double()
    with pytest.raises(InfluenceError, match="1 is a BatchNorm1d without running statistics"):
        FactorSource(model, select(model, last(1)))


def test_gradient_energy_is_the_mean_squared_norm_of_the_gradients() -> None:
    model, (x, y) = MODELS["convolutions"]
    with FactorSource(model, select(model)) as source:
        probe = (source.pull(source.forward(loss, (x[rows], y[rows]))) for rows in (slice(4), slice(4, 7)))
        found = gradient_energy(source, probe)
        with pytest.raises(InfluenceError, match="no point given"):
            gradient_energy(source, [])
    for name, gradients in per_point_gradients(model, (x, y)).items():
        assert found[name] == pytest.approx(float(gradients.square().sum() / 7), rel=1e-12)


def test_a_head_whose_outputs_are_scaled_into_logits_is_refused() -> None:
    model, batch = MODELS["mlp"]
    with (
        FactorSource(model, select(model)) as source,
        pytest.raises(InfluenceError, match="no softmax head"),
    ):
        head_outputs(source, head(model), source.forward(logits, batch) / 2)


class Cosine(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x / x.norm(dim=1, keepdim=True))


def test_a_head_that_is_no_plain_linear_layer_is_refused() -> None:
    model, batch = nn.Sequential(Cosine(5, 3)).double(), points(7)
    with FactorSource(model, select(model)) as source, pytest.raises(InfluenceError, match="no softmax head"):
        head_outputs(source, head(model), source.forward(logits, batch))


def test_a_loss_that_is_not_the_cross_entropy_is_refused() -> None:
    model, batch = MODELS["mlp"]
    values, z = loss(model, batch), logits(model, batch)
    check_cross_entropy(values, z, batch[1])
    with pytest.raises(InfluenceError, match="not the cross-entropy"):
        check_cross_entropy(values * 1.1, z, batch[1])
