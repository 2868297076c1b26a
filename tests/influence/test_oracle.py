"""The memorization oracle against effects that were planted."""

import pytest
import torch

from influence import InfluenceError
from influence.oracle import subset_influence, subset_memorization

MODELS, POINTS, QUERIES = 400, 60, 30


def draws(seed: int = 0) -> tuple[torch.Generator, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return generator, torch.rand(MODELS, POINTS, generator=generator) < 0.7


def test_memorization_is_unbiased_and_its_error_is_the_real_one_on_a_planted_table() -> None:
    generator, subsets = draws()
    inside, outside = torch.rand(2, POINTS, generator=generator)  # chance to be right on a point, with it and without
    chance = torch.where(subsets, inside, outside)
    found = subset_memorization(subsets, torch.rand(MODELS, POINTS, generator=generator) < chance)
    z = (found.effect - (inside - outside)) / found.error
    assert abs(float(z.mean())) < 4 / POINTS**0.5
    assert 0.6 < float(z.square().mean()) < 1.5  # chi-square over 60: sd .18


def test_influence_is_unbiased_and_its_error_is_the_real_one_on_planted_additive_losses() -> None:
    generator, subsets = draws()
    effect = torch.randn(POINTS, QUERIES, generator=generator, dtype=torch.float64)
    losses = 2 - subsets.double() @ effect  # a helpful point lowers the loss of the models that saw it
    found = subset_influence(subsets, losses)
    z = (found.effect - effect) / found.error
    assert abs(float(z.mean())) < 4 / (POINTS * QUERIES) ** 0.5
    # errors of one query share their models, so fewer than 1800 are independent: of 30 queries alone, sd .05
    assert 0.8 < float(z.square().mean()) < 1.2


def test_influence_on_a_query_that_is_the_point_itself_is_its_memorization() -> None:
    generator, subsets = draws()
    outcomes = torch.rand(MODELS, POINTS, generator=generator, dtype=torch.float64)
    memory, influence = subset_memorization(subsets, outcomes), subset_influence(subsets, -outcomes)
    torch.testing.assert_close(influence.effect.diagonal(), memory.effect)
    torch.testing.assert_close(influence.error.diagonal(), memory.error)


def test_a_point_that_nearly_all_models_saw_is_refused() -> None:
    subsets = torch.ones(5, 3, dtype=torch.bool)
    subsets[0] = False
    with pytest.raises(InfluenceError, match="5 subsets: a point is in, or out of, only 1"):
        subset_memorization(subsets, torch.zeros(5, 3))
