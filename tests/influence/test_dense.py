from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from influence import (
    Blocks,
    Curvature,
    Damping,
    Factor,
    GaussNewton,
    InfluenceError,
    PairScorer,
    PairScores,
    alone,
    pearson,
    select,
)
from influence.curvature import joint
from influence.curvature.dual import DualGaussNewton
from influence.curvature.iterative import PCG
from tests.influence.cases import (
    Softmax,
    conv_net,
    fitted,
    images,
    loss_factors,
    mlp,
    over_positions,
    points,
    query_gradients,
    softmax_regression,
)

ROUNDING = {"rtol": 1e-10, "atol": 1e-10}  # float64, condition below 1e4
PROBLEM = softmax_regression()
(HEAD,) = select(PROBLEM.model)


def influence(problem: Softmax, curvature: Curvature | None = None) -> PairScores:
    """Of the train points on the queries of a problem, by exact Gauss-Newton unless another curvature is given."""
    queries = query_gradients(problem.model, problem.queries)
    scorer = PairScorer(curvature or problem.curvature(), queries, len(problem.train[0]))
    return scorer.score(loss_factors(problem.model, problem.train))


def without(point: int, weight: float = 0.0) -> Tensor:
    weights = torch.ones(len(PROBLEM.train[0]), dtype=torch.float64)
    weights[point] = weight
    return weights


@cache
def refitted(weights: tuple[int, float]) -> Tensor:
    """Query losses after refitting with another weight of one point, 0 = without it."""
    return PROBLEM.query_losses(PROBLEM.refit(without(*weights)))


def test_the_heads_gauss_newton_is_the_hessian_of_its_cross_entropy() -> None:
    model, (x, y) = PROBLEM.model, PROBLEM.train
    h = torch.cat([x, x.new_ones(len(x), 1)], 1)
    hessian = torch.func.hessian(lambda w: cross_entropy(h @ w.T, y))(torch.cat([model.weight, model.bias[:, None]], 1))
    torch.testing.assert_close(PROBLEM.curvature().matrix, hessian.reshape(170, 170).detach(), **ROUNDING)


def test_ridge_leave_one_out_is_exact_after_the_leverage_correction() -> None:
    # One output with the root x_i has the Gauss-Newton matrix X'X / n: that of the squared loss (t - theta' x)^2 / 2.
    n, l2, generator = 60, 0.05, torch.Generator().manual_seed(0)
    x = torch.randn(n, 8, generator=generator, dtype=torch.float64)
    t = torch.randn(n, generator=generator, dtype=torch.float64)

    def fit(kept: Tensor) -> Tensor:
        return torch.linalg.solve(x[kept].T @ x[kept] / n + l2 * torch.eye(8).double(), x[kept].T @ t[kept] / n)

    theta, everyone = fit(torch.arange(n)), torch.arange(n)
    (block,) = select(nn.Linear(8, 1, bias=False))
    curvature = GaussNewton([block])
    curvature.accumulate({block.name: Factor(x[:, None], torch.ones(1, n, 1, 1))}, torch.ones(n))
    curvature.reduce(alone)
    curvature.finish(Damping("absolute", l2))
    coordinates = {block.name: torch.eye(8, dtype=torch.float64)[:, None]}  # measure theta itself
    gradients = {block.name: Factor(x[:, None], (x @ theta - t)[:, None, None])}
    first_order = curvature.against(coordinates).score(gradients).dots / n  # [n, 8]
    leverage = curvature.own({block.name: Factor(x[:, None], torch.ones(n, 1, 1))}).self_influence[:, None] / n
    refits = torch.stack([fit(everyone[everyone != i]) - theta for i in range(n)])
    torch.testing.assert_close(first_order / (1 - leverage), refits, rtol=1e-8, atol=1e-14)  # seen 3e-11
    torch.testing.assert_close((refits - first_order) / refits, leverage.expand(n, 8), rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("kind", [GaussNewton, DualGaussNewton, PCG])
def test_softmax_influence_predicts_exact_leave_one_out_refits(kind: Callable[[Blocks], Curvature]) -> None:
    # Refits keep the factor 1/n and the same l2. Seen .9997 and .06; the error is of second order in 1/n.
    curvature, removed = kind((HEAD,)), range(0, 240, 12)
    fitted(curvature, PROBLEM.model, PROBLEM.train, Damping("absolute", PROBLEM.l2))
    predicted = influence(PROBLEM, curvature).influence[::12]
    base = PROBLEM.query_losses(PROBLEM.model)
    rises = torch.stack([refitted((i, 0.0)) - base for i in removed])
    assert pearson(predicted, rises) >= 0.999
    assert (predicted - rises).norm() <= 0.1 * rises.norm()


def test_influence_is_the_derivative_of_the_query_loss_in_the_points_weight() -> None:
    predicted, eps = influence(PROBLEM).influence, 1e-4
    for i in (3, 50):
        up, down = (refitted((i, 1 + s * eps)) for s in (1, -1))
        # Central difference: error eps^2; the refits' gradients are below 1e-10, so below 1e-5 of the quotient.
        torch.testing.assert_close((down - up) / (2 * eps), predicted[i], rtol=1e-4, atol=1e-7)


def test_influence_of_a_point_on_the_whole_train_set_obeys_the_sum_rule() -> None:
    # Stationarity: mean gradient = -l2 W, hence sum over q in train of T[i, q] = -l2 W' H^-1 g_i.
    problem = Softmax(PROBLEM.model, PROBLEM.train, PROBLEM.train, PROBLEM.l2)
    w = torch.cat([problem.model.weight, problem.model.bias[:, None]], 1).detach()[None]
    moved = problem.curvature().against({HEAD.name: w}).score(loss_factors(problem.model, problem.train)).dots[:, 0]
    found = influence(problem).influence.sum(1)
    torch.testing.assert_close(found, -problem.l2 * moved, rtol=0, atol=1e-8)  # gradient < 1e-10


def test_self_influence_of_part_of_a_block_is_at_most_that_of_the_whole() -> None:
    part = nn.Linear(16, 10, bias=False).double()  # the weights without the biases
    (block,) = select(part)
    h = PROBLEM.train[0][:, None]
    p = PROBLEM.model(PROBLEM.train[0]).softmax(1).detach()
    curvature = GaussNewton([block])
    roots = p.T.sqrt()[:, :, None] * (torch.eye(10).double()[:, None] - p)
    curvature.accumulate({block.name: Factor(h, roots[:, :, None])}, torch.ones(240))
    curvature.reduce(alone)
    curvature.finish(Damping("absolute", PROBLEM.l2))
    residual = p - torch.nn.functional.one_hot(PROBLEM.train[1], 10)
    some = curvature.own({block.name: Factor(h, residual[:, None])}).self_influence
    assert (some <= influence(PROBLEM).self_influence).all()
    assert (some >= 0).all()


@pytest.mark.parametrize(
    ("model", "batch"),
    [(mlp(), points(30)), (conv_net(), images(30)), (over_positions(), points(30, positions=4))],
    ids=["mlp", "conv", "positions"],
)
def test_cutting_a_batch_into_runs_changes_nothing(
    model: nn.Module, batch: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, pieces = GaussNewton(select(model)), GaussNewton(select(model))
    fitted(whole, model, batch)
    expected = whole.own(loss_factors(model, batch)).self_influence
    monkeypatch.setattr(joint, "DENSE_ELEMENTS", 2000)
    fitted(pieces, model, batch)
    torch.testing.assert_close(pieces.matrix, whole.matrix, **ROUNDING)
    torch.testing.assert_close(pieces.own(loss_factors(model, batch)).self_influence, expected, **ROUNDING)


def test_float32_roots_are_multiplied_in_float64() -> None:
    factors = {"model": Factor(torch.full((1, 1, 1), 3.0), torch.full((1, 1, 1, 1), 1 / 3))}
    curvature = GaussNewton(select(nn.Linear(1, 1, bias=False)))
    curvature.accumulate(factors, torch.ones(1))
    curvature.reduce(alone)
    third = float(torch.tensor(1 / 3))
    assert float(curvature.matrix) == pytest.approx((3 * third) ** 2, rel=1e-15)
    assert float(curvature.matrix) != float((torch.tensor(3.0) * torch.tensor(1 / 3)) ** 2)


def test_too_many_parameters_for_the_exact_solver_name_the_remedy() -> None:
    with pytest.raises(InfluenceError, match=r"model has 5130 parameters.*up to 4096; use EK-FAC"):
        GaussNewton(select(nn.Linear(512, 10)))
