"""Scores of several models as one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from influence import Damping, Identity, Influence, select
from influence.ensemble import over_checkpoints, over_models
from influence.errors import InfluenceError
from tests.influence.cases import TASK, loss, softmax_regression


def scores(seed: int) -> Tensor:
    return torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_checkpoints_add_up_by_their_size_so_a_fitted_one_adds_little() -> None:
    early, fitted = scores(0), 1e-6 * scores(1)
    torch.testing.assert_close(over_checkpoints([early, fitted]), early + fitted, rtol=0, atol=0)
    torch.testing.assert_close(over_checkpoints([early, fitted]), early, rtol=0, atol=1e-5)


def test_learning_rates_weigh_checkpoints() -> None:
    early, late = scores(0), scores(1)
    torch.testing.assert_close(over_checkpoints([early, late], [0.1, 0.01]), 0.1 * early + 0.01 * late)
    torch.testing.assert_close(over_checkpoints([early, late], [1, 1]), over_checkpoints([early, late]))
    torch.testing.assert_close(over_checkpoints([early, late], [0, 1]), late)


def test_the_learning_rates_of_gradient_descent_give_what_a_step_took_off_a_querys_loss() -> None:
    # A step of eta on the mean loss of n points changes a query's loss by -eta mean_i g_i' g_q to first order.
    problem = softmax_regression()
    model, rates = nn.Linear(16, 10).double(), (1e-4, 3e-4)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    before, found = loss(model, problem.queries), []
    for rate in rates:
        blocks = select(model)
        with Influence(model, TASK, Identity(blocks), blocks) as influence:
            influence.fit([problem.train], Damping("absolute", 1.0))
            found.append(influence.pairs([problem.train], [problem.queries], own=False).influence)
        gradients = torch.autograd.grad(loss(model, problem.train).mean(), list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= rate * gradient
    taken = (before - loss(model, problem.queries)).detach()
    # What is of second order is the learning rate times the largest eigenvalue, below 1.
    torch.testing.assert_close(over_checkpoints(found, rates).sum(0), taken, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("rates", [[0.1], [0.1, 0.1, 0.1], [0.1, -0.1], [0.1, float("nan")]])
def test_rates_that_are_not_one_for_each_checkpoint_are_refused(rates: list[float]) -> None:
    with pytest.raises(InfluenceError, match=r"learning rates .* for 2 checkpoints: give one for each, at least 0"):
        over_checkpoints([scores(0), scores(1)], rates)


def test_the_scale_of_a_model_on_any_query_does_not_matter() -> None:
    one, other = scores(0), scores(1)
    scale = torch.tensor([1e-3, 1.0, 1e3], dtype=torch.float64)  # of each query
    torch.testing.assert_close(over_models([one, other * scale]), over_models([one, other]))


def test_equal_models_rank_as_one_with_columns_of_norm_one() -> None:
    one = scores(0)
    both = over_models([one, one])
    torch.testing.assert_close(both, one / one.norm(dim=0))
    assert both.sign().equal(one.sign())


def test_every_model_counts_the_same() -> None:
    one, other = torch.tensor([[3.0], [4.0]]), torch.tensor([[0.0], [-2.0]])
    torch.testing.assert_close(over_models([one, other]), torch.tensor([[0.3], [-0.1]]))


def test_a_query_that_nothing_influences_stays_zero() -> None:
    one = scores(0)
    one[:, 1] = 0
    found = over_models([one, one])
    assert found.isfinite().all()
    assert (found[:, 1] == 0).all()


@pytest.mark.parametrize("given", [[], [scores(0), scores(0)[:5]], [scores(0)[0]]])
def test_scores_of_other_points_or_queries_are_refused(given: list[Tensor]) -> None:
    for combine in (over_checkpoints, over_models):
        with pytest.raises(InfluenceError, match="each \\[n, m\\] of the same points and queries"):
            combine(given)
