import torch
from torch import Tensor

from flows.guardrail import Outcome, Verdict, bootstrap, compare
from flows.sections.curation import GuardrailConfig

SEEDS, POINTS = 3, 400
CONFIG = GuardrailConfig(tolerance=0.005, group_tolerance=0.05, resamples=500)


def outcome(shift: float | Tensor = 0.0, seeds: int = SEEDS, noise: float = 0.0) -> Outcome:
    """The same losses in every arm, moved by `shift`; `noise` differs between the seeds."""
    generator = torch.Generator().manual_seed(0)
    loss = torch.rand(POINTS, generator=generator, dtype=torch.float64).expand(seeds, -1)
    jitter = noise * torch.randn(seeds, POINTS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return Outcome(loss + shift + jitter, (loss < 0.5).double(), torch.arange(POINTS) % 4)


def judged(
    challenger: float | Tensor, control: float | Tensor = 0.0, champion: float | None = None, baseline: float = 0.0
) -> Verdict:
    arms = {"baseline": outcome(baseline), "challenger": outcome(challenger), "control": outcome(control)}
    return compare(arms, None if champion is None else outcome(champion, seeds=1), CONFIG, seed=0)


def failed(verdict: Verdict) -> list[str]:
    return [check.name for check in verdict.checks if not check.passed]


def test_a_clear_gain_over_baseline_and_control_is_promoted() -> None:
    verdict = judged(challenger=-0.1)
    assert verdict.promote == "challenger"
    assert not failed(verdict)


def test_arms_that_do_not_differ_are_not_promoted_against_the_control() -> None:
    verdict = judged(challenger=0.0)
    assert failed(verdict) == ["challenger - control"]
    assert verdict.promote == "baseline"
    assert "challenger - control +0.0000 is not below 0; there is no champion yet" in verdict.reason


def test_a_gain_that_random_removal_has_too_is_not_promoted() -> None:
    assert failed(judged(challenger=-0.1, control=-0.1)) == ["challenger - control"]


def test_a_loss_beyond_the_tolerance_is_refused_even_where_the_control_is_worse() -> None:
    assert failed(judged(challenger=0.01, control=0.5)) == ["challenger - baseline"]
    assert judged(challenger=0.004, control=0.5).promote == "challenger"


def test_a_gain_on_average_does_not_buy_a_class_that_is_far_worse() -> None:
    shift = torch.full((POINTS,), -0.2, dtype=torch.float64)
    shift[torch.arange(POINTS) % 4 == 2] = 0.3
    verdict = judged(challenger=shift)
    assert failed(verdict) == ["class 2, lower bound"]
    assert verdict.promote == "baseline"


def test_a_gain_within_the_noise_of_few_points_is_not_promoted() -> None:
    arms = {
        "baseline": outcome(noise=2.0),
        "challenger": outcome(-0.02),  # the noise of the mean is 2 / sqrt(1200) = 0.06
        "control": outcome(noise=2.0),
    }
    assert "challenger - baseline" in failed(compare(arms, None, CONFIG, seed=0))


def test_a_champion_that_is_better_than_the_challenger_stays() -> None:
    verdict = judged(challenger=-0.1, champion=-0.3)
    assert failed(verdict) == ["challenger - champion", "baseline - champion"]
    assert verdict.promote == ""
    assert "baseline - champion +0.3000 is not below 0.005" in verdict.reason


def test_a_challenger_that_fails_leaves_the_place_to_a_baseline_that_holds_its_own() -> None:
    assert judged(challenger=0.1, champion=0.0).promote == "baseline"
    assert judged(challenger=0.1, champion=-0.004).promote == "baseline"
    assert judged(challenger=0.1, champion=-0.006).promote == ""


def test_without_a_challenger_the_baseline_is_all_that_can_be_promoted() -> None:
    assert compare({"baseline": outcome(seeds=1)}, None, CONFIG, seed=0).promote == "baseline"
    assert compare({"baseline": outcome(0.1, 1)}, outcome(seeds=1), CONFIG, seed=0).promote == ""


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    # 200 samples: the share covered has a standard error of 1.5 %; resampling seeds as well as points widens it
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(200, 1, 150, generator=generator, dtype=torch.float64)
    found = [bootstrap(values, 300, seed=0) for values in samples]
    two_sided = sum(estimate.low < 0 < estimate.high for estimate in found) / len(found)
    below = sum(estimate.upper > 0 for estimate in found) / len(found)
    assert 0.90 < two_sided <= 0.99
    assert 0.90 < below <= 0.99


def test_seeds_that_disagree_widen_the_interval_however_many_points_there_are() -> None:
    agree = torch.zeros(3, 5000, dtype=torch.float64)
    disagree = torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64).expand(3, 5000)
    assert bootstrap(agree, 300, seed=0).high == 0.0
    assert bootstrap(disagree, 300, seed=0).high > 0.5


def test_the_bounds_are_ordered_and_repeatable() -> None:
    values = torch.randn(3, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    estimate = bootstrap(values, 200, seed=4)
    assert estimate.low <= estimate.lower <= estimate.mean <= estimate.upper <= estimate.high
    assert bootstrap(values, 200, seed=4) == estimate
    assert bootstrap(values, 200, seed=5) != estimate
