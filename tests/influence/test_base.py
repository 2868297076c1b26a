import pytest
import torch

from influence import Damping, DampingKind, InfluenceError, Own
from influence.curvature.base import Scored, Solved, train_points
from tests.influence.cases import ekfac, loss_factors, mlp, points, query_gradients


def test_damping_kinds_resolve_to_their_formulas() -> None:
    assert Damping("absolute", 0.3).resolve(5.0) == 0.3
    assert Damping("mean_eig", 0.1).resolve(5.0) == 0.5
    assert Damping("horizon", 4.0, weight_decay=0.01).resolve(5.0) == 0.26  # 1 / T + weight decay


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_damping_that_is_not_positive_is_refused(value: float) -> None:
    with pytest.raises(InfluenceError, match="positive"):
        Damping("absolute", value)


def test_an_unknown_kind_lists_the_kinds() -> None:
    with pytest.raises(InfluenceError, match="absolute, mean_eig, horizon"):
        Damping("l2", 1.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "weight_decay"), [("absolute", 0.1), ("horizon", -0.1)])
def test_weight_decay_outside_horizon_or_below_zero_is_refused(kind: DampingKind, weight_decay: float) -> None:
    with pytest.raises(InfluenceError, match="at least 0, and only with kind 'horizon'"):
        Damping(kind, 1.0, weight_decay=weight_decay)


def test_mean_eig_of_a_block_without_curvature_is_refused() -> None:
    with pytest.raises(InfluenceError, match="no curvature"):
        Damping("mean_eig", 0.1).resolve(0.0)


def own(values: list[float], steps: list[float] | None = None) -> Own:
    return Own(torch.tensor(values), None if steps is None else torch.tensor(steps))


def test_own_terms_of_blocks_add_up_and_those_of_points_follow_each_other() -> None:
    left, right = own([1.0, 2.0], [3.0, 4.0]), own([10.0, 20.0], [30.0, 40.0])
    added, joined = Own.sum([left, right]), Own.join([left, right])
    assert added.self_influence.tolist() == [11.0, 22.0]
    assert added.squared_step is not None
    assert added.squared_step.tolist() == [33.0, 44.0]
    assert joined.self_influence.tolist() == [1.0, 2.0, 10.0, 20.0]
    assert joined.squared_step is not None
    assert joined.squared_step.tolist() == [3.0, 4.0, 30.0, 40.0]
    assert Own.sum([own([1.0]), own([2.0])]).squared_step is None


def test_scores_of_blocks_add_up_and_those_of_points_follow_each_other() -> None:
    left, right = Scored(torch.ones(1, 2), own([1.0])), Scored(torch.full((1, 2), 2.0), own([2.0]))
    added, joined = Scored.sum([left, right]), Scored.join([left, right])
    assert added.dots.tolist() == [[3.0, 3.0]]
    assert joined.dots.tolist() == [[1.0, 1.0], [2.0, 2.0]]
    assert added.own is not None
    assert added.own.self_influence.tolist() == [3.0]
    assert Scored.join([Scored(torch.ones(1, 1), None)]).own is None


def test_own_terms_are_there_only_where_they_were_asked_for() -> None:
    model, batch = mlp(), points(30)
    curvature, losses = ekfac(model, batch), loss_factors(model, batch)
    queries = query_gradients(model, batch).gradients
    assert Solved(curvature, queries).score(losses).own is None
    asked = Solved(curvature, queries, own=True).score(losses).own
    assert asked is not None
    assert asked.squared_step is None


def test_a_curvature_without_train_points_is_refused() -> None:
    assert train_points(torch.tensor(3.0)) == 3
    with pytest.raises(InfluenceError, match="no point of weight 1"):
        train_points(torch.tensor(0.0))
