"""Empirical influence and its desiderata."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from influence import InfluenceError, empirical
from influence.empirical import decay, desiderata, empirical_influence, sparseness, symmetry
from tests.influence.cases import (
    TASK,
    conv_net,
    images,
    loss,
    mlp,
    newton,
    over_positions,
    per_point_gradients,
    points,
    softmax_regression,
    split,
)


def attention() -> nn.Sequential:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(5, 1, 6, batch_first=True)
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(20, 3)).double().eval()


MODELS = {
    "mlp": (mlp(), points(8), points(5, seed=2)),
    "positions": (over_positions(), points(8, positions=4), points(5, positions=4, seed=2)),
    "conv": (conv_net(), images(8), images(5, seed=2)),
    "attention": (attention(), points(8, positions=4), points(5, positions=4, seed=2)),
}
no_fallback = pytest.mark.filterwarnings("error:There is a performance drop")  # of what cannot be batched
every_model = pytest.mark.parametrize("case", MODELS)


@no_fallback
@every_model
def test_it_is_the_fall_of_the_loss_by_sgd_on_one_point(case: str) -> None:
    model, train, queries = MODELS[case]
    found = empirical_influence(model, TASK, [train], split(queries, 2), rate=0.1, steps=3)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    for i in range(8):
        solver = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(3):
            solver.zero_grad()
            loss(model, (train[0][i : i + 1], train[1][i : i + 1])).sum().backward()
            solver.step()
        after = loss(model, queries).detach()
        model.load_state_dict(start)
        torch.testing.assert_close(found[i], loss(model, queries).detach() - after, rtol=1e-10, atol=1e-13)
    model.zero_grad()


@pytest.mark.parametrize("case", ["mlp", "positions", "conv"])
def test_halving_a_small_rate_halves_the_relative_distance_from_gradient_dot(case: str) -> None:
    model, train, queries = MODELS[case]
    left, right = per_point_gradients(model, train), per_point_gradients(model, queries)
    dots = sum(left[name].flatten(1) @ right[name].flatten(1).T for name in left)

    def error(rate: float) -> float:
        found = empirical_influence(model, TASK, [train], [queries], rate)
        return float((found / rate - dots).norm() / dots.norm())

    errors = [error(1e-3 / 2**halving) for halving in range(4)]
    ratios = [coarse / fine for coarse, fine in pairwise(errors)]
    assert ratios == pytest.approx([2, 2, 2], rel=0.02)  # the next term is of the order of the rate
    assert errors[0] < 0.05


def test_pieces_and_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, train, queries = MODELS["conv"]
    whole = empirical_influence(model, TASK, [train], [queries], 0.1)
    monkeypatch.setattr(empirical, "COPIES", 3 * sum(p.numel() for p in model.parameters()))
    pieces = empirical_influence(model, TASK, split(train, 5), split(queries, 2), 0.1)
    torch.testing.assert_close(pieces, whole, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize(("rate", "steps"), [(0, 1), (-0.1, 1), (0.1, 0)])
def test_a_rate_that_is_not_positive_or_no_step_is_refused(rate: float, steps: int) -> None:
    model, train, queries = MODELS["mlp"]
    with pytest.raises(InfluenceError, match="positive rate and at least 1 step"):
        empirical_influence(model, TASK, [train], [queries], rate, steps)


LINE = torch.arange(20, dtype=torch.float64)
APART = (LINE[:, None] - LINE).abs()  # of points on a line


def random(n: int) -> Tensor:
    return torch.randn(n, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_influence_that_falls_with_distance_decays_whatever_its_sign() -> None:
    sign = random(20).sign()
    assert decay(sign * (-APART).exp(), APART) == pytest.approx(-1)
    assert decay(sign * APART.exp(), APART) == pytest.approx(1)


def test_sparseness_is_the_share_of_the_top_tenth() -> None:
    assert sparseness(-torch.ones(30, 4)) == pytest.approx(0.1)
    assert sparseness(torch.eye(30)) == 1
    one = torch.tensor([[-7.0, 1, 1, 1, 0, 0, 0, 0, 0, 0]]).T
    assert sparseness(one) == pytest.approx(0.7)
    assert sparseness(torch.cat([one, 5 * torch.ones(10, 1)], 1)) == pytest.approx(0.4)  # every query counts the same


def test_symmetry_leaves_out_the_diagonal() -> None:
    upper = random(20).triu(1)
    assert symmetry(upper + upper.T) == pytest.approx(1)
    assert symmetry(upper - upper.T + 100 * torch.eye(20)) == pytest.approx(-1)


def test_desiderata_are_these() -> None:
    influence, noise = random(20), random(21)[1:, 1:]
    found = desiderata(influence, APART, influence)
    assert found.invariance == pytest.approx(1)
    assert (found.decay, found.sparseness, found.symmetry) == (
        decay(influence, APART),
        sparseness(influence),
        symmetry(influence),
    )
    assert abs(desiderata(influence, APART, noise).invariance) < 0.2  # 380 pairs: 4 standard errors


def test_on_a_fitted_convex_model_one_small_step_is_nearly_symmetric() -> None:
    # g_q . g_i is symmetric; what is left is of the order of the rate
    case = softmax_regression(60, 10)
    model = newton(case.model, case.train, case.l2, torch.ones(60, dtype=torch.float64))
    found = empirical_influence(model, TASK, [case.train], [case.train], 1e-3)
    assert symmetry(found) > 0.999
