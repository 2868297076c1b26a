from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from flows.errors import BadInput
from flows.guardrail import ALPHA, HOLM, Outcome, Verdict, compare, level_of, read_outcome
from flows.plans import HOLDOUT
from flows.sections.curation import GuardrailConfig

SEEDS, POINTS = 3, 400
CONFIG = GuardrailConfig(tolerance=0.005, group_tolerance=0.05, resamples=500)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


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
    assert "challenger - control +0.0000 is not below 0 (level 0.04); there is no champion yet" in verdict.reason


def test_a_gain_that_random_removal_has_too_is_not_promoted() -> None:
    assert failed(judged(challenger=-0.1, control=-0.1)) == ["challenger - control"]


def test_a_loss_beyond_the_tolerance_is_refused_even_where_the_control_is_worse() -> None:
    assert failed(judged(challenger=0.01, control=0.5)) == ["challenger - baseline"]
    assert judged(challenger=0.004, control=0.5).promote == "challenger"


def test_a_gain_on_average_does_not_buy_a_class_that_is_far_worse() -> None:
    shift = torch.full((POINTS,), -0.2, dtype=torch.float64)
    shift[torch.arange(POINTS) % 4 == 2] = 0.3
    verdict = judged(challenger=shift)
    assert failed(verdict) == ["class 2" + HOLM]
    assert verdict.promote == "baseline"


@pytest.mark.parametrize(
    ("challenger", "control", "champion", "missed"),
    [
        (0.019, 0.0, 0.0, []),
        (0.021, 0.5, 0.5, ["challenger - baseline"]),
        (0.0, -0.021, 0.0, ["challenger - control"]),
        (0.0, 0.0, -0.021, ["challenger - champion"]),
    ],
)
def test_less_training_need_not_be_better_but_not_worse_by_the_margin_against_any(
    challenger: float, control: float, champion: float, missed: list[str]
) -> None:
    arms = {"baseline": outcome(), "challenger": outcome(challenger), "control": outcome(control)}
    verdict = compare(arms, outcome(champion, seeds=1), CONFIG, seed=0, margin=0.02)
    assert [name for name in failed(verdict) if name.startswith("challenger")] == missed
    assert (verdict.promote == "challenger") == (not missed)
    if not missed:
        assert verdict.reason.startswith(
            "every bound of the challenger is below 0.02 nats, what less training may cost"
        )
        assert "challenger - control" in failed(compare(arms, None, CONFIG, seed=0))


def test_the_margin_of_less_training_is_none_for_the_classes_and_for_the_baseline() -> None:
    shift = torch.zeros(POINTS, dtype=torch.float64)
    shift[torch.arange(POINTS) % 4 == 2] = 0.06
    arms = {"baseline": outcome(), "challenger": outcome(shift), "control": outcome()}
    verdict = compare(arms, outcome(-0.01, seeds=1), CONFIG, seed=0, margin=0.5)
    assert failed(verdict) == ["class 2" + HOLM, "baseline - champion"]


@pytest.mark.parametrize(
    ("challenger", "champion", "missed"),
    [
        (0.004, 0.0, []),
        (-0.1, 0.0, []),
        (0.006, 0.5, ["challenger - baseline"]),
        (0.0, -0.006, ["challenger - champion"]),
    ],
)
def test_points_that_come_back_have_no_control_to_beat_and_may_cost_the_tolerance_at_most(
    challenger: float, champion: float, missed: list[str]
) -> None:
    arms = {"baseline": outcome(), "challenger": outcome(challenger)}
    verdict = compare(arms, outcome(champion, seeds=1), CONFIG, seed=0)
    assert [name for name in failed(verdict) if name.startswith("challenger")] == missed
    assert "challenger - control" not in {check.name for check in verdict.checks}
    assert (verdict.promote == "challenger") == (not missed)
    if not missed:
        assert verdict.reason.startswith("every bound of the challenger is below 0.005 nats, what a return may cost")


def test_a_class_that_is_far_worse_by_a_return_refuses_it() -> None:
    shift = torch.full((POINTS,), -0.2, dtype=torch.float64)
    shift[torch.arange(POINTS) % 4 == 2] = 0.3
    verdict = compare({"baseline": outcome(), "challenger": outcome(shift)}, None, CONFIG, seed=0)
    assert failed(verdict) == ["class 2" + HOLM]


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


def test_the_losses_of_every_class_and_group_are_corrected_for_one_another() -> None:
    """Of 40 slices that are no worse than the tolerance, uncorrected tests at .05 would refuse two."""
    slices, each, refused = 40, 12, 0
    config = GuardrailConfig(seeds=2, group_tolerance=0.0, resamples=100)
    for trial in range(20):
        noise = normal(trial, 1, slices * each).expand(2, -1) * 0.1
        label = torch.arange(slices * each) % slices
        base = Outcome(torch.ones(2, slices * each, dtype=torch.float64), torch.ones(2, slices * each).double(), label)
        other = Outcome(base.loss + noise, base.correct, label)
        checks = compare({"baseline": base, "challenger": other, "control": base}, None, config, seed=trial).checks
        refused += any(not check.passed for check in checks if check.name.endswith(HOLM))
    assert refused <= 4, "5 % of 20 families, and 3 standard errors more"


def test_a_class_of_one_point_cannot_refuse_and_is_not_left_out_of_the_checks() -> None:
    label = torch.zeros(POINTS, dtype=torch.int64)
    label[0] = 1
    change = torch.full((POINTS,), -0.1, dtype=torch.float64)
    change[0] = 50.0
    base, other = outcome(), outcome(change)
    arms = {"baseline": base, "challenger": other, "control": base}
    verdict = compare({arm: Outcome(one.loss, one.correct, label) for arm, one in arms.items()}, None, CONFIG, seed=0)
    [check] = [check for check in verdict.checks if check.name == "class 1" + HOLM]
    assert (check.passed, check.bound) == (True, 1.0)
    assert check.mean == pytest.approx(50.0)


def test_a_group_is_held_to_the_tolerance_as_a_class_is() -> None:
    shift = torch.full((POINTS,), -0.2, dtype=torch.float64)
    shift[:20] = 0.3
    group = ("night",) * 20 + (None,) * (POINTS - 20)
    arms = {"baseline": outcome(), "challenger": outcome(shift), "control": outcome()}
    arms = {arm: Outcome(one.loss, one.correct, torch.zeros(POINTS).long(), group) for arm, one in arms.items()}
    assert failed(compare(arms, None, CONFIG, seed=0)) == ["group night" + HOLM]


def test_a_difference_that_is_exactly_the_limit_is_not_below_it() -> None:
    assert failed(judged(challenger=-0.5, control=-0.5)) == ["challenger - control"]
    tied = GuardrailConfig(tolerance=0.0, resamples=100)
    arms = {"baseline": outcome(), "challenger": outcome(), "control": outcome(1.0)}
    assert failed(compare(arms, None, tied, seed=0)) == ["challenger - baseline"]


def sequence(
    seeds: int,
    gain: float,
    of_seed: float,
    of_point: float,
    trial: int,
    uneven: float = 1.0,
    margin: float | None = None,
    control: bool = True,
) -> Verdict:
    """Round after round of one simulated cycle; the control differs from the challenger by the gain alone.

    The baseline is far worse. `uneven` is how many times more the control varies from seed to seed than the others.
    Without a control it is the baseline that the gain is over, and the tolerance is .5.
    """
    points, config = 60, GuardrailConfig(seeds=seeds, resamples=400, group_tolerance=10.0, tolerance=0.5)
    noise = {
        arm: of_seed * (uneven if arm == "control" else 1) * normal(3 * trial + number, seeds, 1)
        + of_point * normal(10**6 + 3 * trial + number, 1, points)
        for number, arm in enumerate(("baseline", "challenger", "control"))
    }
    for count in range(2, seeds + 1):
        arms = {
            arm: Outcome(
                value[:count] - (gain if arm == "challenger" else 0) + (9.0 if control and arm == "baseline" else 0),
                torch.ones(count, points).double(),
                torch.zeros(points).long(),
            )
            for arm, value in noise.items()
            if control or arm != "control"
        }
        verdict = compare(arms, None, config, seed=trial, margin=margin)
        if verdict.stopped:
            break
    return verdict


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seeds", "of_seed", "of_point", "uneven"),
    [(2, 1.0, 0.0, 1.0), (3, 1.0, 0.0, 1.0), (3, 1.0, 0.0, 1.5), (3, 0.0, 1.0, 1.0), (5, 0.3, 1.0, 1.0)],
)
def test_a_challenger_that_is_no_better_than_the_control_is_promoted_once_in_twenty(
    seeds: int, of_seed: float, of_point: float, uneven: float
) -> None:
    """400 cycles at the edge, gain 0, whatever is noisy and however often it is looked; se of a share of .05: .011."""
    cycles = 400
    promoted = sum(sequence(seeds, 0.0, of_seed, of_point, t, uneven).promote == "challenger" for t in range(cycles))
    assert promoted / cycles <= 0.05 + 3 * 0.011


@pytest.mark.slow
def test_a_challenger_that_loses_the_margin_is_promoted_for_less_training_once_in_twenty() -> None:
    """400 cycles whose challenger is worse than the control by just the margin; se of a share of .05: .011."""
    cycles, margin = 400, 0.5
    promoted = sum(sequence(3, -margin, 0.5, 0.5, t, margin=margin).promote == "challenger" for t in range(cycles))
    assert 0 < promoted / cycles <= 0.05 + 3 * 0.011


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_a_return_that_costs_the_tolerance_is_promoted_once_in_twenty(seeds: int) -> None:
    """400 cycles of two arms whose challenger is worse by just the tolerance; se of a share of .05: .011."""
    cycles = 400
    promoted = sum(sequence(seeds, -0.5, 0.5, 0.5, t, control=False).promote == "challenger" for t in range(cycles))
    assert 0 < promoted / cycles <= 0.05 + 3 * 0.011


def test_a_clear_gain_and_a_clear_loss_end_after_the_first_round() -> None:
    better, worse = (sequence(5, gain, 0.001, 0.1, trial=0) for gain in (1.0, -1.0))
    assert (better.promote, better.seeds, better.stopped) == ("challenger", 2, "clearly better after 2 of 5 seeds")
    assert (worse.promote, worse.seeds, worse.stopped) == ("baseline", 2, "clearly not better after 2 of 5 seeds")


def test_an_open_answer_asks_for_another_round_and_promotes_nothing() -> None:
    arms = {"baseline": outcome(seeds=2, noise=2.0), "challenger": outcome(-0.1, 2), "control": outcome(0.02, 2, 1.0)}
    verdict = compare(arms, outcome(seeds=1), CONFIG, seed=0)
    assert (verdict.promote, verdict.stopped, verdict.seeds) == ("", "", 2)


def test_the_levels_of_all_looks_add_up_to_the_level_of_the_whole() -> None:
    for seeds in (2, 3, 5, 9):
        assert sum(level_of(count, seeds) for count in range(2, seeds + 1)) == pytest.approx(ALPHA)
    assert level_of(2, 2) == ALPHA


@pytest.mark.parametrize(
    ("losses", "said"), [([0.5, float("nan")], "of point 1 is not finite"), ([0.5], "has 1 point: give at least 2")]
)
def test_outcomes_that_cannot_be_judged_are_refused(tmp_path: Path, losses: list[float], said: str) -> None:
    count = len(losses)
    columns = {"point_id": list(range(count)), "label": [0] * count, "group": pa.nulls(count, pa.string())}
    pq.write_table(pa.table({**columns, "loss": losses, "correct": [True] * count}), tmp_path / HOLDOUT)
    with pytest.raises(BadInput, match=said):
        read_outcome((tmp_path,))
