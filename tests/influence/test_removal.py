"""Removal without training: the influence step against exact refits, and the step of IAU against torch's Adam."""

import pytest
import torch
from torch import Tensor, nn

from influence import (
    Damping,
    Factor,
    GaussNewton,
    InfluenceError,
    available,
    by_name,
    influence_step,
    materialise,
    move,
    pearson,
    select,
    summed,
    unlearning_step,
)
from tests.influence.cases import Softmax, head_curvature, loss, loss_factors, softmax_regression
from tests.influence.layers import Model, Scaled, as_matrix, made

N, GONE = 80, 9
RIDGE = 0.05


def ridge() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, 6, generator=generator, dtype=torch.float64)
    return x, x.sum(1) + torch.randn(N, generator=generator, dtype=torch.float64)


def refitted(x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """Minimiser of (1/n) sum_i w_i (x_i' theta - y_i)^2 / 2 + (ridge / 2) ||theta||^2, n fixed."""
    matrix = (x * weights[:, None]).T @ x / N + RIDGE * torch.eye(x.shape[1], dtype=x.dtype)
    return torch.linalg.solve(matrix, x.T @ (weights * y) / N)


def test_with_the_curvature_of_the_points_that_stay_it_is_the_exact_refit_of_a_quadratic() -> None:
    x, y = ridge()
    stays = torch.arange(N) >= GONE
    theta = refitted(x, y, torch.ones(N, dtype=torch.float64))
    model = nn.Linear(6, 1, bias=False).double()
    blocks = select(model)
    one = torch.ones(1, N, 1, 1, dtype=torch.float64)
    curvature = GaussNewton(blocks)
    curvature.accumulate({blocks[0].name: Factor(x[:, None], one)}, stays.double())
    curvature.reduce(lambda _: None)
    curvature.finish(Damping("absolute", RIDGE * N / (N - GONE)))  # it divides by the points that stay
    residuals = (x @ theta - y)[:, None, None]  # [n, 1, 1]
    leaving = summed([({blocks[0].name: Factor(x[:, None], residuals)}, (~stays).double())])
    step = influence_step(curvature, leaving, N - GONE)[blocks[0].name][0]
    torch.testing.assert_close(theta + step, refitted(x, y, stays.double()), rtol=0, atol=1e-8)


def removal(case: Softmax, weights: Tensor, *, newton: bool = False) -> Tensor:
    """Changes of the queries' losses by one step."""
    kept = weights if newton else torch.ones_like(weights)
    n, left = len(weights), float(kept.sum())
    damping = Damping("absolute", case.l2 * n / left)
    curvature = head_curvature(case.model, case.train, damping, kept)
    leaving = summed([(loss_factors(case.model, case.train), 1 - weights)])
    moved = nn.Linear(16, 10).double().eval()
    moved.load_state_dict(case.model.state_dict())
    move(select(moved), influence_step(curvature, leaving, int(left)))
    return case.query_losses(moved) - case.query_losses(case.model)


def left_out(count: int, seed: int) -> Tensor:
    weights = torch.ones(240, dtype=torch.float64)
    weights[torch.randperm(240, generator=torch.Generator().manual_seed(seed))[:count]] = 0
    return weights


def test_what_a_group_does_to_the_queries_is_what_the_refit_without_it_does() -> None:
    """ALGORITHMS: Pearson over removals of one point .9997; here of groups of 6 out of 240, .99."""
    case = softmax_regression()
    groups = [left_out(6, seed) for seed in range(5)]
    truth = torch.cat([case.query_losses(case.refit(one)) - case.query_losses(case.model) for one in groups])
    assert pearson(torch.cat([removal(case, one) for one in groups]), truth) >= 0.99


def test_one_newton_step_on_the_points_that_stay_is_the_refit_to_a_ten_thousandth() -> None:
    case = softmax_regression()
    groups = [left_out(6, seed) for seed in range(5)]
    truth = torch.cat([case.query_losses(case.refit(one)) - case.query_losses(case.model) for one in groups])
    found = torch.cat([removal(case, one, newton=True) for one in groups])
    assert pearson(found, truth) >= 0.9999
    assert (found - truth).norm() / truth.norm() < 0.05  # seen: .01; the step alone, without the new curvature: .1


def test_a_relabeling_is_a_point_that_leaves_and_comes_back_with_another_label() -> None:
    case = softmax_regression()
    x, y = case.train
    changed = y.clone()
    changed[:6] = (y[:6] + 1) % 10
    ones = torch.ones(6, dtype=torch.float64)
    before, after = (
        (loss_factors(case.model, (x[:6], labels)), sign) for labels, sign in ((y[:6], ones), (changed[:6], -ones))
    )
    other = Softmax(case.model, (x, changed), case.queries, case.l2)
    truth = other.query_losses(other.refit(torch.ones(240, dtype=torch.float64))) - case.query_losses(case.model)
    moved = nn.Linear(16, 10).double().eval()
    moved.load_state_dict(case.model.state_dict())
    move(select(moved), influence_step(case.curvature(), summed([before, after]), 240))
    assert (
        pearson(case.query_losses(moved) - case.query_losses(case.model), truth) >= 0.97
    )  # 2.5 % of labels: not small


def test_removing_a_copy_of_a_query_raises_its_loss_and_adding_one_lowers_it() -> None:
    case = softmax_regression()
    x, y = case.queries[0][:1], case.queries[1][:1]
    for sign in (1.0, -1.0):
        copied = summed([(loss_factors(case.model, (x, y)), torch.tensor([sign], dtype=torch.float64))])
        moved = nn.Linear(16, 10).double().eval()
        moved.load_state_dict(case.model.state_dict())
        move(select(moved), influence_step(case.curvature(), copied, 240))
        change = loss(moved, (x, y)) - loss(case.model, (x, y))
        assert float(sign * change) > 0


def test_gradients_in_batches_are_summed_as_those_of_all_points_together() -> None:
    case = softmax_regression()
    x, y = case.train
    weights = left_out(30, 1)
    parts = [(loss_factors(case.model, (x[at], y[at])), weights[at]) for at in torch.arange(240).split(50)]
    [(name, found)] = summed(parts).items()
    whole = materialise(loss_factors(case.model, case.train)[name])
    torch.testing.assert_close(found, torch.einsum("b,boi->oi", weights, whole)[None])


@pytest.mark.parametrize(
    ("layer", "shape", "tokens", "channels"),
    [
        (nn.Linear(5, 4), (5,), None, False),
        (nn.Conv1d(2, 4, 3), (2, 9), None, True),
        (nn.Conv1d(2, 4, 3, groups=2, bias=False), (2, 9), None, True),
        (nn.Embedding(7, 4), (6,), 7, False),
        (nn.LayerNorm(4), (3, 4), None, False),
        (Scaled(), (3, 4), None, False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_step_goes_to_the_parameters_that_its_entries_are_of(
    layer: nn.Module, shape: tuple[int, ...], tokens: int | None, channels: bool
) -> None:
    model, _ = made(Model(layer, channels=channels), *shape, tokens=tokens)
    [block] = select(model, by_name("layer"))
    others = {name: value.clone() for name, value in model.state_dict().items() if not name.startswith("layer.")}
    before = {name: value.detach().clone() for name, value in layer.named_parameters()}
    step = torch.randn(block.weight_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    move([block], {"layer": step})
    changed = {name: value.detach() - before[name] for name, value in layer.named_parameters()}
    torch.testing.assert_close(as_matrix(block, changed), step)
    assert all(model.state_dict()[name].equal(value) for name, value in others.items())


def test_a_step_of_a_tied_table_goes_to_the_weight_as_it_stands_and_not_its_transpose() -> None:
    tied = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 4, bias=False)).double()
    tied[1].weight = tied[0].weight
    before, step = tied[0].weight.detach().clone(), torch.arange(12.0, dtype=torch.float64).view(4, 3)
    move(select(tied), {"0": step})
    assert tied[1].weight.equal(before + step)
    with pytest.raises(InfluenceError, match=r"block '0' takes a step \[3, 4\], given is \[4, 3\]: give the blocks"):
        move(available(tied), {"0": step})
    assert tied[0].weight.equal(before + step)


def test_a_step_of_no_points_is_refused() -> None:
    case = softmax_regression()
    with pytest.raises(InfluenceError, match="0 train points"):
        influence_step(case.curvature(), {}, 0)


def test_unlearning_is_one_step_of_adam_on_the_loss_that_stays_less_the_loss_that_goes() -> None:
    case = softmax_regression()
    stay, go = ((case.train[0][rows], case.train[1][rows]) for rows in (slice(10, None), slice(10)))
    means = [summed([(loss_factors(case.model, b), torch.full((len(b[1]),), 1 / len(b[1])))]) for b in (stay, go)]
    model = nn.Linear(16, 10).double()
    model.load_state_dict(case.model.state_dict())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    (loss(model, stay).mean() - loss(model, go).mean()).backward()
    optimizer.step()
    moved = nn.Linear(16, 10).double()
    moved.load_state_dict(case.model.state_dict())
    move(select(moved), {name: one[0] for name, one in unlearning_step(*means).items()})
    torch.testing.assert_close(moved.weight, model.weight, rtol=0, atol=1e-6)  # weights 1/n are float32
    torch.testing.assert_close(moved.bias, model.bias, rtol=0, atol=1e-6)
