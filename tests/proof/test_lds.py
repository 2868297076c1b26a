"""The models that the LDS is measured on are those that plain torch trains, one by one."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tests.proof.lds_models import BATCH, CLASSES, MOMENTUM, Layers, Recipe, losses, module, train
from tests.proof.lds_truth import own_subsets, subsets

RECIPE = Recipe(rate=0.1, weight_decay=0.01, epochs=3)
POINTS, WIDTH = 120, 6  # two full batches and a smaller one


def points() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(POINTS, WIDTH, generator=generator, dtype=torch.float32)
    return inputs, torch.randint(CLASSES, (POINTS,), generator=generator)


def flat(layers: Layers, number: int) -> Tensor:
    return torch.cat([one[number].flatten() for layer in layers for one in layer])


def test_a_model_does_not_depend_on_those_beside_it() -> None:
    inputs, labels = points()
    members = torch.stack([torch.randperm(POINTS, generator=torch.Generator().manual_seed(k))[:70] for k in range(3)])
    together = train(RECIPE, inputs, labels, members, [5, 6, 7])
    alone = train(RECIPE, inputs, labels, members[1:2], [6])
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(flat(one, 1), flat(other, 0))


def test_a_model_is_that_of_torch_sgd_on_the_same_batches() -> None:
    inputs, labels = points()
    found = train(RECIPE, inputs, labels, torch.arange(POINTS)[None], [5])[-1]
    draws = torch.Generator().manual_seed(5)
    model = _untrained(draws)
    solver = torch.optim.SGD(model.parameters(), RECIPE.rate, MOMENTUM, weight_decay=RECIPE.weight_decay)
    rates = iter(RECIPE.rates(POINTS))
    for _ in range(RECIPE.epochs):
        for rows in torch.randperm(POINTS, generator=draws).split(BATCH):
            solver.param_groups[0]["lr"] = next(rates)
            solver.zero_grad()
            cross_entropy(model(inputs[rows]), labels[rows]).backward()
            solver.step()
    with torch.no_grad():
        expected = cross_entropy(model(inputs), labels, reduction="none")
    # float32 through 9 steps: products are summed in another order
    torch.testing.assert_close(losses(found, inputs, labels)[0], expected, rtol=1e-4, atol=1e-5)


def _untrained(draws: torch.Generator) -> torch.nn.Sequential:
    """The weights that training starts from: those after no step."""
    rest = Recipe(rate=0.0, weight_decay=0.0, epochs=1)
    model = module(train(rest, *points(), torch.arange(POINTS)[None], [5])[-1], 0)
    for weight in (one for one in model if isinstance(one, torch.nn.Linear)):
        torch.rand(weight.weight.shape, generator=draws)
        torch.rand(weight.bias.shape, generator=draws)
    return model


def test_no_half_that_chooses_a_damping_is_among_those_that_judge_it() -> None:
    judging = {tuple(row.tolist()) for row in subsets()}
    assert not any(tuple(row.tolist()) in judging for row in own_subsets())
