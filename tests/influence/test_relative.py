import pytest
import torch
from torch import Tensor

from influence import InfluenceError, Own, PairScorer, PairScores, materialise, relative_influence
from tests.influence.cases import ekfac, loss_factors, mlp, points, query_gradients

MODEL, TRAIN, QUERIES = mlp(), points(30), points(9, seed=2)
EXACT = {"rtol": 1e-10, "atol": 1e-10}  # float64


def pairs() -> PairScores:
    return PairScorer(ekfac(MODEL, TRAIN), query_gradients(MODEL, QUERIES), points=30).score(loss_factors(MODEL, TRAIN))


def mean_query() -> tuple[Tensor, Tensor]:
    """Norm of the queries' mean loss gradient, and its own self-influence."""
    mean = {name: materialise(factor).mean(0, keepdim=True) for name, factor in loss_factors(MODEL, QUERIES).items()}
    solved = ekfac(MODEL, TRAIN).solve(mean)
    norm = torch.stack([gradient.square().sum() for gradient in mean.values()]).sum().sqrt()
    return norm, torch.stack([(mean[name] * solved[name]).sum() for name in mean]).sum()


def test_modes_are_their_formulas() -> None:
    own = Own(torch.tensor([4.0, 9.0]), torch.tensor([16.0, 25.0]))
    found = relative_influence(torch.tensor([0.1, -0.3]), own, points=10)
    torch.testing.assert_close(found.theta, torch.tensor([1 / 4, -3 / 5]))
    torch.testing.assert_close(found.l, torch.tensor([1 / 2, -3 / 3]))
    torch.testing.assert_close(found.own, torch.tensor([1 / 4, -3 / 9]))
    torch.testing.assert_close(found.share, torch.tensor([0.25, -0.75]))
    assert found.nulls == 0


def test_theta_and_l_are_cosines_times_the_size_of_the_query() -> None:
    # theta: between g_q and H^-1 g_i; l: between g_q and g_i in the metric H^-1.
    scores = pairs()
    found, (norm, own) = relative_influence(scores.influence.mean(1), scores.own, 30), mean_query()
    for cosine in (found.theta / norm, found.l / own.sqrt()):
        assert cosine.abs().max() <= 1 + 1e-12  # rounding
        assert cosine.abs().max() > 0.3  # and not small for want of scale


def test_a_point_that_is_its_own_query_has_cosine_one_and_transfer_one() -> None:
    held = PairScorer(ekfac(MODEL, TRAIN), query_gradients(MODEL, TRAIN), points=30)
    scores = held.score(loss_factors(MODEL, TRAIN))
    found = relative_influence(scores.influence.diagonal(), scores.own, 30)
    torch.testing.assert_close(found.l / scores.self_influence.sqrt(), torch.ones(30).double(), **EXACT)
    torch.testing.assert_close(found.own, torch.ones(30).double(), **EXACT)


def test_shares_add_up_to_one_in_absolute_value_and_keep_their_sign() -> None:
    influence = pairs().influence.mean(1)
    share = relative_influence(influence, pairs().own, 30).share
    torch.testing.assert_close(share.abs().sum().item(), 1.0)
    assert share.sign().equal(influence.sign())


@pytest.mark.parametrize("self_influence", [[1.0, 2.0, 3.0, 1e-7, 0.0], [1.0, 2.0, 0.0, 0.0, 0.0]])
def test_a_point_of_negligible_self_influence_is_null_and_counted_not_ranked(self_influence: list[float]) -> None:
    # Below 1e-6 of the median; also where most points have none at all.
    negligible = [value < 1e-6 for value in self_influence]
    found = relative_influence(torch.ones(5), Own(torch.tensor(self_influence), torch.ones(5)), points=5)
    assert found.nulls == sum(negligible)
    for mode in (found.theta, found.l, found.own):
        assert mode.isnan().tolist() == negligible
    assert found.share.isfinite().all()


def test_without_squared_steps_it_is_refused() -> None:
    with pytest.raises(InfluenceError, match="step=True"):
        relative_influence(torch.ones(2), Own(torch.ones(2)), points=2)
