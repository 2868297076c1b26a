"""Bounds of means over holdout points and seeds: coverage by simulation, Holm by hand."""

import pytest
import torch
from torch import Tensor

from flows.bounds import SeedError, draw_mean, holm


def samples(seeds: int, points: int, of_seed: float, of_point: float, trials: int = 400) -> list[Tensor]:
    """Losses `[S, N]` whose mean is 0 in truth: an effect of the seed, one of the point, and noise of both."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    both = 0.3 * normal(trials, seeds, points)
    return list(of_seed * normal(trials, seeds, 1) + of_point * normal(trials, 1, points) + both)


@pytest.mark.parametrize(
    ("seeds", "points", "of_seed", "of_point"),
    [
        (1, 150, 0.0, 1.0),
        (2, 100, 1.0, 0.1),
        (3, 100, 1.0, 0.1),
        (3, 100, 0.0, 1.0),
        (5, 100, 0.2, 1.0),
        (3, 4, 0.0, 1.0),
    ],
)
def test_one_sided_bounds_leave_out_the_truth_once_in_twenty_at_most(
    seeds: int, points: int, of_seed: float, of_point: float
) -> None:
    # 400 samples: the standard error of a share of .05 is .011; three of them
    drawn = [draw_mean(values, 400, seed) for seed, values in enumerate(samples(seeds, points, of_seed, of_point))]
    missed = sum(draws.upper(0.05) < 0 for draws in drawn) / len(drawn)
    wrong = sum(draws.p_above(0.0) < 0.05 for draws in drawn) / len(drawn)
    assert max(missed, wrong) <= 0.05 + 3 * 0.011


def test_bounds_are_not_wider_than_they_must_be_where_points_are_all_that_varies() -> None:
    # 400 samples whose interval should hold 0 in 95 %; se .011
    found = [draw_mean(values, 400, 0).estimate() for values in samples(1, 150, 0.0, 1.0)]
    assert abs(sum(one.low < 0 < one.high for one in found) / len(found) - 0.95) <= 3 * 0.011


def test_seeds_that_disagree_widen_the_interval_however_many_points_there_are() -> None:
    agree = torch.zeros(3, 5000, dtype=torch.float64)
    disagree = torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64).expand(3, 5000)
    assert draw_mean(agree, 300, seed=0).estimate().high == 0.0
    # Student's t with 2 degrees of freedom: 4.30 standard errors of 1 / sqrt(3); 2000 draws of a heavy tail
    assert draw_mean(disagree, 2000, seed=0).estimate().high == pytest.approx(4.30 / 3**0.5, rel=0.15)


def test_the_bounds_are_ordered_repeatable_and_within_what_is_possible() -> None:
    values = torch.randn(3, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    estimate = draw_mean(values, 200, seed=4).estimate()
    assert estimate.low <= estimate.lower <= estimate.mean <= estimate.upper <= estimate.high
    assert draw_mean(values, 200, seed=4).estimate() == estimate
    assert draw_mean(values, 200, seed=5).estimate() != estimate
    shares = (values > 0).double()
    assert draw_mean(shares[:2], 200, seed=4).estimate(0, 1).low >= 0


def test_a_p_value_is_never_zero() -> None:
    assert draw_mean(torch.ones(2, 9, dtype=torch.float64), 99, seed=0).p_above(0.0) == 0.01


def test_holm_on_an_example_by_hand() -> None:
    """4 x .01, then 3 x .02, then 2 x .03, then .04, none below the one before it; in the order given."""
    p_values = {"c": 0.03, "a": 0.01, "d": 0.04, "b": 0.02}
    assert holm(p_values) == pytest.approx({"c": 0.06, "a": 0.04, "d": 0.06, "b": 0.06})
    assert list(holm(p_values)) == ["c", "a", "d", "b"]


def test_holm_of_ties_of_one_and_of_none() -> None:
    assert holm({"a": 0.5, "b": 0.5}) == {"a": 1.0, "b": 1.0}
    assert holm({"a": 0.2}) == {"a": 0.2}
    assert holm({}) == {}


def test_the_error_of_two_arms_is_that_of_randomized_blocks_by_hand() -> None:
    """Arms 0, 3 and 6, seeds 0 and 2, and .5 more in one cell: residuals of 1/6 and 1/12, whose squares sum to 1/12."""
    means = torch.tensor([[0.5, 2.0], [3.0, 5.0], [6.0, 8.0]], dtype=torch.float64)
    found = SeedError.of_difference(means)
    assert found.degrees == 2
    assert found.error == pytest.approx((2 * (1 / 12) / 2 / 2) ** 0.5)


def test_what_all_arms_share_at_a_seed_is_no_error_of_their_difference() -> None:
    arms, seeds = torch.tensor([[0.0], [1.0]], dtype=torch.float64), torch.tensor([[0.0, 9.0, -4.0]]).double()
    assert SeedError.of_difference(arms + seeds).error == pytest.approx(0.0, abs=1e-12)
