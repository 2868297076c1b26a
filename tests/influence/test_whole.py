"""All parameters of a model without hooks, proved against hooks and dense algebra."""

from dataclasses import astuple

import pytest
import torch
from torch import Tensor, nn

from influence import (
    Damping,
    FactorSource,
    GaussNewton,
    Influence,
    InfluenceError,
    Reader,
    available,
    by_name,
    gradient_energy,
    select,
)
from influence.whole import TOLERANCE, agreement, exact_influence, point_energies
from tests.influence.cases import TASK, Batch, conv_net, images, loss, mlp, normed, over_positions, points, split

MODELS = {
    "mlp": (mlp(), points(12)),
    "positions": (over_positions(), points(12, positions=3)),
    "conv": (conv_net(), images(12)),
    "norm": (normed(), points(12)),
}
every_model = pytest.mark.parametrize("case", MODELS)
DAMPING = 0.05


@every_model
def test_the_energy_of_every_block_is_what_hooks_find(case: str) -> None:
    model, batch = MODELS[case]
    blocks = available(model)
    with Reader(model, TASK, blocks) as reader:
        hooked = gradient_energy(FactorSource(model, blocks), [reader.losses(batch).losses])
    found = point_energies(model.eval(), TASK, split(batch, 1)).mean(0)
    assert found.tolist() == pytest.approx(list(hooked.values()), rel=1e-10)  # float64


def test_each_point_has_its_own_energy_whatever_the_others_are() -> None:
    model, batch = MODELS["mlp"]
    singles = split(batch, 1)
    found = point_energies(model.eval(), TASK, singles)
    assert point_energies(model, TASK, singles[3:5]).equal(found[3:5])


class Shared(nn.Module):
    """Two layers with one weight, a layer that is never called, and parameters of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 5)
        self.second.weight = self.first.weight
        self.unused, self.head = nn.Linear(2, 2), nn.Linear(5, 3)
        self.shift = nn.Parameter(torch.zeros(5))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).tanh() + self.shift))


def test_shared_unused_and_frozen_parameters_do_not_stand_in_the_way() -> None:
    torch.manual_seed(0)
    model, batch = Shared().double().eval(), points(6)
    model.head.requires_grad_(False)
    found = dict(zip([block.name for block in available(model)], point_energies(model, TASK, split(batch, 1)).T))
    assert (found["unused"], found["head"]) == (pytest.approx(0), pytest.approx(0))
    learned = {name: value for name, value in model.named_parameters() if value.requires_grad}
    for row, single in enumerate(split(batch, 1)):
        gradients = torch.autograd.grad(loss(model, single).sum(), learned.values(), materialize_grads=True)
        squares = {name: float(one.square().sum()) for name, one in zip(learned, gradients)}
        expected = {
            "first": squares["first.weight"] + squares["first.bias"],
            "second": squares["second.bias"],
            "model": squares["shift"],
        }
        assert {name: float(found[name][row]) for name in expected} == pytest.approx(expected, rel=1e-12)


@every_model
@pytest.mark.parametrize("chosen", ["*", "head"])
def test_exact_influence_is_that_of_the_dense_matrix(case: str, chosen: str) -> None:
    model, batch = MODELS[case]
    blocks = select(model.eval()) if chosen == "*" else select(model, by_name(available(model)[-1].name))
    train, queries = (batch[0][:9], batch[1][:9]), (batch[0][9:], batch[1][9:])
    with Influence(model, TASK, GaussNewton(blocks), blocks) as influence:
        influence.fit([train], Damping("absolute", DAMPING))
        singles = influence.pairs([train], [queries]).influence
    expected = torch.cat([singles.mean(1, keepdim=True), singles], 1)
    groups = [split(queries, 2), *([single] for single in split(queries, 1))]
    names = [f"{block.name}.{name}" for block in blocks for name, _ in block.module.named_parameters(recurse=False)]
    found = exact_influence(model, TASK, split(train, 4), split(train, 1), groups, names, DAMPING, 9)
    # the error of a solution is at most its residual over the damping, and influence at most as far off
    largest = gradient_norms(model, names, train).max() * gradient_norms(model, names, queries).max() / 9
    assert (found - expected).abs().max() <= TOLERANCE * largest / DAMPING
    assert agreement(found, expected).error == pytest.approx(0, abs=10 * TOLERANCE)


def gradient_norms(model: nn.Module, names: list[str], batch: Batch) -> Tensor:
    known = dict(model.named_parameters())
    rows = [
        torch.autograd.grad(loss(model, single).sum(), [known[name] for name in names]) for single in split(batch, 1)
    ]
    return torch.stack([torch.cat([one.flatten() for one in row]).norm() for row in rows])


def test_what_does_not_converge_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*given: object, **options: object) -> None:
        raise InfluenceError("did not converge")

    monkeypatch.setattr("influence.whole.conjugate_gradients", never)
    model, batch = MODELS["mlp"]
    singles = split(batch, 1)
    found = exact_influence(model.eval(), TASK, [batch], singles[:2], [singles[2:5]] * 3, ["0.weight"], DAMPING, 12)
    assert found.shape == (2, 3)
    assert found.isnan().all()
    assert agreement(found, found).pairs is None


def test_agreement_tells_scale_from_order_and_pairs_from_means() -> None:
    truth = torch.tensor([[1.0, 1.0, 5.0], [3.0, 3.0, 2.0], [-4.0, -4.0, 0.5]], dtype=torch.float64)
    assert astuple(agreement(truth, truth)) == pytest.approx((1, 1, 0))
    assert astuple(agreement(2 * truth, truth)) == pytest.approx((1, 1, 1))
    assert astuple(agreement(-truth, truth)) == pytest.approx((-1, -1, 2))
    other_means = torch.cat([-truth[:, :1], truth[:, 1:]], 1)
    assert astuple(agreement(other_means, truth)) == pytest.approx((1, -1, 0))


def test_an_agreement_that_does_not_exist_is_none() -> None:
    truth = torch.tensor([[1.0, 1.0, 5.0], [3.0, 3.0, 2.0]], dtype=torch.float64)
    assert agreement(torch.ones(2, 3), truth).pairs is None
    assert agreement(truth, torch.zeros(2, 3)).error is None
