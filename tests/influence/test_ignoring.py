"""Learning by ignoring: one bilevel step."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from influence import InfluenceError, linear_blocks, select
from tests.influence.cases import (
    TASK,
    Batch,
    conv_net,
    images,
    loss,
    mlp,
    normed,
    over_positions,
    per_point_gradients,
    points,
    split,
)
from tests.left_out.ignoring import ignoring_influence, soft_pruning

RATE = 0.5
MODELS = {
    "mlp": (mlp(), points(12), points(5, seed=2)),
    "positions": (over_positions(), points(12, positions=4), points(5, positions=4, seed=2)),
    "conv": (conv_net(), images(12), images(5, seed=2)),
    "norm": (normed(), points(12), points(5, seed=2)),
}
every_model = pytest.mark.parametrize("case", MODELS)
EACH = torch.arange(5)


def query_losses(model: nn.Module, train: Batch, queries: Batch, weights: Tensor, rate: float) -> Tensor:
    """After one step of SGD on weighted points; torch can derive it by the weights, [m]."""
    values = dict(model.named_parameters())
    inner = (weights * loss(model, train)).sum() / len(weights)
    gradients = torch.autograd.grad(inner, list(values.values()), create_graph=True)
    moved = {name: value - rate * g for (name, value), g in zip(values.items(), gradients, strict=True)}
    z = functional_call(model, moved, (queries[0],))
    return nn.functional.cross_entropy(z, queries[1], reduction="none")


@every_model
@pytest.mark.parametrize("uniform", [True, False])
def test_it_is_minus_the_derivative_through_one_step_of_sgd(case: str, uniform: bool) -> None:
    model, train, queries = MODELS[case]
    weights = torch.ones(12, dtype=torch.float64) if uniform else torch.linspace(0, 1, 12, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda a: query_losses(model, train, queries, a, RATE), weights)
    found = ignoring_influence(
        model, TASK, select(model), split(train, 5), split(queries, 3), EACH, RATE, None if uniform else weights
    )
    torch.testing.assert_close(found, -jacobian.T, rtol=1e-10, atol=1e-10)
    assert found.abs().max() > 1e-3


@every_model
def test_for_a_small_step_it_is_the_rate_times_gradient_dot(case: str) -> None:
    model, train, queries = MODELS[case]
    left, right = per_point_gradients(model, train), per_point_gradients(model, queries)
    dots = sum(left[name].flatten(1) @ right[name].flatten(1).T for name in left) / 12
    found = ignoring_influence(model, TASK, select(model), [train], [queries], EACH, 1e-8)
    torch.testing.assert_close(found / 1e-8, dots, rtol=1e-6, atol=1e-7)  # the rest is of the order of the rate


def test_a_group_is_the_mean_of_its_queries() -> None:
    model, train, queries = MODELS["mlp"]
    groups = torch.tensor([1, 0, 1, 1, 0])
    alone = ignoring_influence(model, TASK, select(model), [train], [queries], EACH, RATE)
    found = ignoring_influence(model, TASK, select(model), [train], [queries], groups, RATE)
    means = torch.stack([alone[:, groups == group].mean(1) for group in (0, 1)], 1)
    torch.testing.assert_close(found, means, rtol=1e-12, atol=1e-15)


def test_only_the_selected_blocks_move_and_the_model_is_left_as_it_was() -> None:
    model, train, queries = MODELS["mlp"]
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    whole = ignoring_influence(model, TASK, linear_blocks(model), [train], [queries], EACH, RATE)
    head = ignoring_influence(model, TASK, linear_blocks(model)[-1:], [train], [queries], EACH, RATE)
    assert not head.allclose(whole, rtol=0.1)
    assert all(value.equal(before[name]) and value.grad is None for name, value in model.named_parameters())


def test_the_model_is_left_as_it_was_after_an_error() -> None:
    model, train, queries = MODELS["mlp"]
    before = model[0].weight.detach().clone()
    with pytest.raises(InfluenceError, match="queries read"):
        ignoring_influence(model, TASK, select(model), [train], [queries], torch.arange(4), RATE)
    assert model[0].weight.equal(before)


def test_soft_pruning_keeps_what_helps_the_step_and_ignores_what_harms_it() -> None:
    model, train, queries = MODELS["mlp"]
    mean = torch.zeros(5, dtype=torch.int64)
    gain = ignoring_influence(model, TASK, select(model), [train], [queries], mean, RATE)[:, 0]
    first = soft_pruning(model, TASK, select(model), split(train, 5), split(queries, 3), RATE, steps=1, change=0.3)
    torch.testing.assert_close(first, (1 + 0.3 * gain / gain.square().mean().sqrt()).clamp(0, 1))
    weights = soft_pruning(model, TASK, select(model), [train], [queries], RATE, steps=60)
    gain = ignoring_influence(model, TASK, select(model), [train], [queries], mean, RATE, weights)[:, 0]
    assert 0 < int((weights == 0).sum()) < 12
    assert gain[weights == 1].gt(0).all()  # where the loss is least among weights in [0, 1]: Karush, Kuhn and Tucker
    assert gain[weights == 0].lt(0).all()
    ones = torch.ones(12, dtype=torch.float64)
    after, before = (query_losses(model, train, queries, a, RATE).mean() for a in (weights, ones))
    assert after < before


@pytest.mark.parametrize(("steps", "change"), [(0, 0.1), (1, float("nan")), (1, 0.0)])
def test_no_step_and_a_step_of_no_size_are_refused(steps: int, change: float) -> None:
    model, train, queries = MODELS["mlp"]
    with pytest.raises(InfluenceError, match="give at least 1, and a positive size"):
        soft_pruning(model, TASK, select(model), [train], [queries], RATE, steps, change)


def test_a_model_in_training_mode_and_groups_with_gaps_are_refused() -> None:
    model, train, queries = MODELS["mlp"]
    with pytest.raises(InfluenceError, match="training mode"):
        ignoring_influence(deepcopy(model).train(), TASK, select(model), [train], [queries], EACH, RATE)
    with pytest.raises(InfluenceError, match="without gaps"):
        ignoring_influence(model, TASK, select(model), [train], [queries], 2 * EACH, RATE)


def test_a_rate_that_is_not_positive_and_missing_weights_are_refused() -> None:
    model, train, queries = MODELS["mlp"]
    with pytest.raises(InfluenceError, match=r"rate 0: .* positive"):
        ignoring_influence(model, TASK, select(model), [train], [queries], EACH, 0)
    with pytest.raises(InfluenceError, match="11 weights for 12 train points"):
        ignoring_influence(model, TASK, select(model), [train], [queries], EACH, RATE, torch.ones(11))
