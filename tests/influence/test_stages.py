"""Influence through two stages of training, against refits of both in closed form."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from influence import InfluenceError, Stage, pearson, stage_influence

N, POINTS, M, D, K = 200, 25, 6, 5, 3  # pre-training and fine-tuning points, queries, inputs, features
RIDGE, HEAD, ALPHA = 0.05, 0.02, 0.3
Losses = Callable[[Tensor, Tensor], Tensor]


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X, Y = drawn(N, D, seed=0), drawn(N, K, seed=1) + drawn(N, 1, seed=2)
U, V = drawn(POINTS, D, seed=3), drawn(POINTS, seed=4) + 1.0
Q, T = drawn(M, D, seed=5), drawn(M, seed=6)


def ridge(x: Tensor, y: Tensor, weights: Tensor, penalty: Tensor) -> Tensor:
    """Minimiser of (1/n) sum_i w_i ||x_i' b - y_i||^2 / 2 + b' diag(penalty) b / 2, n fixed."""
    matrix = (x * weights[:, None]).T @ x / len(x) + torch.diag(penalty)
    return torch.linalg.solve(matrix, x.T @ (y * weights.view(-1, *[1] * (y.ndim - 1))) / len(x))


def with_one(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones_like(x[:, :1])], 1)


class Features:
    """Pre-training learns features W with an offset of their own targets; a head is fine-tuned on them as they are."""

    proximity = 0.0

    def fit(self, before: Tensor, after: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        both = ridge(with_one(X), Y, before, torch.full((D + 1,), RIDGE, dtype=X.dtype))
        features = both[:D]
        head = ridge(U @ features, V, after, torch.full((K,), HEAD, dtype=X.dtype))
        return {"features": features, "offset": both[D]}, {"head": head}

    def stages(self) -> tuple[Stage, Stage]:
        first, second = self.fit(torch.ones(N).double(), torch.ones(POINTS).double())
        pretraining = Stage(
            first,
            lambda p: (X @ p["features"] + p["offset"] - Y).square().sum(1) / 2,
            lambda p: RIDGE / 2 * (p["features"].square().sum() + p["offset"].square().sum()),
        )
        finetuning = Stage(
            second,
            lambda p: (U @ p["features"] @ p["head"] - V).square() / 2,
            lambda p: HEAD / 2 * p["head"].square().sum(),
        )
        return pretraining, finetuning

    def queries(self, p: dict[str, Tensor]) -> Tensor:
        return (Q @ p["features"] @ p["head"] - T).square() / 2


class GoingOn(Features):
    """Fine-tuning goes on with the weights, near the pre-trained ones, and adds some of its own: jointly quadratic."""

    def __init__(self, proximity: float = ALPHA) -> None:
        self.proximity = proximity

    def fit(self, before: Tensor, after: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        first = ridge(X, Y[:, 0], before, torch.full((D,), RIDGE, dtype=X.dtype))
        penalty = torch.cat([torch.full((D,), 2 * self.proximity), torch.full((D,), HEAD)]).to(X)
        # of the difference to the pre-trained weights, and of the others
        both = ridge(torch.cat([U, U.sin()], 1), V - U @ first, after, penalty)
        return {"weights": first}, {"weights": first + both[:D], "more": both[D:]}

    def stages(self) -> tuple[Stage, Stage]:
        first, second = self.fit(torch.ones(N).double(), torch.ones(POINTS).double())
        pretraining = Stage(
            first,
            lambda p: (X @ p["weights"] - Y[:, 0]).square() / 2,
            lambda p: RIDGE / 2 * p["weights"].square().sum(),
        )
        finetuning = Stage(
            second,
            lambda p: (U @ p["weights"] + U.sin() @ p["more"] - V).square() / 2,
            lambda p: HEAD / 2 * p["more"].square().sum(),
        )
        return pretraining, finetuning

    def queries(self, p: dict[str, Tensor]) -> Tensor:
        return (Q @ p["weights"] + Q.sin() @ p["more"] - T).square() / 2


CASES = {"fixed": Features, "going on": GoingOn}


def outcome(case: Features, before: Tensor, after: Tensor) -> Tensor:
    """Losses of the queries after both stages, each point with its weight."""
    first, second = case.fit(before, after)
    return case.queries(first | second)


def removed(count: int, point: int, share: float = 1.0) -> Tensor:
    weights = torch.ones(count, dtype=torch.float64)
    weights[point] -= share
    return weights


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_derivative_of_both_refits_in_a_points_weight(name: str) -> None:
    case = CASES[name]()
    found = stage_influence(*case.stages(), case.queries, case.proximity)
    step = 1e-5
    for count, scores, where in ((N, found.pretraining, 0), (POINTS, found.finetuning, 1)):
        for point in range(0, count, 5):
            moved = [removed(count, point, share) for share in (step, -step)]
            others = torch.ones(POINTS if where == 0 else N, dtype=torch.float64)
            less, more = (outcome(case, *((one, others) if where == 0 else (others, one))) for one in moved)
            torch.testing.assert_close(scores[point], (less - more) / (2 * step), rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_it_ranks_what_removing_each_pretraining_point_does_after_both_refits(name: str) -> None:
    case = CASES[name]()
    found = stage_influence(*case.stages(), case.queries, case.proximity).pretraining
    everything = outcome(case, removed(N, 0, 0.0), removed(POINTS, 0, 0.0))
    truth = torch.stack([outcome(case, removed(N, point), removed(POINTS, 0, 0.0)) - everything for point in range(N)])
    # first order leaves out the leverage of a point, .03 on average, and that features and head are multiplied
    assert pearson(found.flatten(), truth.flatten()) > 0.97
    large = truth.abs() > truth.abs().quantile(0.75)
    assert (found.sign() == truth.sign())[large].double().mean() > 0.99, "positive where the loss rises"


def test_on_a_ridge_stage_the_leverage_makes_it_exact() -> None:
    """Of queries that are linear in what pre-training finds, and weights that do not move any more."""
    case = GoingOn(proximity=1e9)
    first, second = case.stages()

    def linear(p: dict[str, Tensor]) -> Tensor:
        return Q @ p["weights"]

    found = stage_influence(first, second, linear, case.proximity, tolerance=1e-12).pretraining
    matrix = X.T @ X / N + RIDGE * torch.eye(D, dtype=X.dtype)
    leverage = (X @ torch.linalg.inv(matrix) * X).sum(1) / N
    for point in range(N):
        refit = ridge(X, Y[:, 0], removed(N, point), torch.full((D,), RIDGE, dtype=X.dtype))
        change = Q @ (refit - first.parameters["weights"])
        torch.testing.assert_close(found[point] / (1 - leverage[point]), change, rtol=1e-6, atol=1e-9)


def test_what_fine_tuning_may_move_freely_owes_nothing_to_pretraining() -> None:
    case = GoingOn(proximity=0.0)
    _, second = case.stages()
    freely = Stage(second.parameters, second.losses, lambda p: HEAD / 2 * sum(one.square().sum() for one in p.values()))
    found = stage_influence(case.stages()[0], freely, case.queries)
    assert not found.pretraining.any()
    assert found.finetuning.any()


def test_a_stage_without_a_minimum_is_refused_in_a_line() -> None:
    pretraining, finetuning = Features().stages()
    flat = Stage(pretraining.parameters, lambda p: 0 * p["features"].sum() + torch.arange(N).double())
    with pytest.raises(InfluenceError, match="did not converge"):
        stage_influence(flat, finetuning, Features().queries)
