import pytest
import torch
from torch import Tensor

from influence import Conformity, InfluenceError
from influence.discovery import (
    Discovery,
    Influences,
    Trusted,
    benjamini_hochberg,
    conformal_p,
    harmful,
    memorized,
    mislabeled,
    normal_scores,
    trusted,
)

N, M = 1000, 300


def everyone(n: int) -> Tensor:
    return torch.ones(n, dtype=torch.bool)


def case(harm: int, seed: int, spread: float = 1.0, shift: float = 6.0) -> tuple[Influences, Trusted]:
    """Good points and queries of one spread, far wider than the error; the first `harm` points are shifted down."""
    g = torch.Generator().manual_seed(seed)
    size = torch.rand(N, generator=g, dtype=torch.float64) + 0.5  # self-influence differs tenfold from the queries'
    values = spread * torch.randn(N, generator=g, dtype=torch.float64)
    values[:harm] -= shift
    influences = Influences(values * size, torch.full((N,), 0.01, dtype=torch.float64), size.square())
    return influences, Trusted(10 * spread * torch.randn(M, generator=g, dtype=torch.float64), torch.full((M,), 100.0))


def false_share(found: Discovery, harm: int) -> float:
    return found.selected[harm:].sum().item() / max(1, int(found.selected.sum()))


def test_adjusted_p_values_are_those_of_the_textbook() -> None:
    p = torch.tensor([0.04, 0.01, 0.03, 0.20], dtype=torch.float64)
    expected = torch.tensor([0.16 / 3, 0.04, 0.16 / 3, 0.20], dtype=torch.float64)
    torch.testing.assert_close(benjamini_hochberg(p, 4), expected)


def test_a_conformal_p_is_a_rank_that_counts_the_value_itself() -> None:
    found = conformal_p(torch.tensor([0.0, 2.0, 9.0]), torch.tensor([3.0, 2.0, 1.0]))
    torch.testing.assert_close(found, torch.tensor([0.25, 0.75, 1.0], dtype=torch.float64))


def test_good_points_that_differ_by_more_than_their_error_are_left_alone() -> None:
    # The complete null: with level q, something is found in at most a share q of the draws (+ 3 sigma of 60 draws),
    # although Phi(V / se) alone would take about half of all points.
    found = [harmful(*case(0, seed), everyone(N)) for seed in range(60)]
    assert sum(bool(f.selected.any()) for f in found) <= 60 * 0.2 + 3 * (60 * 0.2 * 0.8) ** 0.5


def test_false_discoveries_stay_at_q_and_harm_is_found() -> None:
    shares = []
    for seed in range(20):
        found = harmful(*case(100, seed), everyone(N))
        shares.append(false_share(found, 100))
        assert found.selected[:100].double().mean() > 0.9  # shifted by 6 spreads
    assert sum(shares) / len(shares) <= 0.2 + 0.06  # 3 standard errors over draws of the reference


def test_influence_within_its_error_is_not_harm() -> None:
    scores, reference = case(100, seed=0)
    noisy = Influences(scores.influence, 100 * scores.influence.abs(), scores.self_influence)
    assert not harmful(noisy, reference, everyone(N)).selected.any()


def test_influence_on_shuffled_points_finds_other_points() -> None:
    scores, reference = case(100, seed=0)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    shuffled = Influences(scores.influence[order], scores.influence_se[order], scores.self_influence[order])
    assert false_share(harmful(scores, reference, everyone(N)), 100) < 0.3
    assert false_share(harmful(shuffled, reference, everyone(N)), 100) > 0.8


def test_harm_is_relative_to_what_the_point_moves() -> None:
    # The unit of a point's gradient must not matter: influence scales with it, self-influence with its square.
    scores, reference = case(100, seed=0)
    unit = torch.logspace(-1, 1, N, dtype=torch.float64)
    scaled = Influences(scores.influence * unit, scores.influence_se * unit, scores.self_influence * unit.square())
    assert torch.equal(
        harmful(scores, reference, everyone(N)).selected, harmful(scaled, reference, everyone(N)).selected
    )


def test_a_point_that_moves_nothing_is_no_harm() -> None:
    scores, reference = case(100, seed=0)
    scores.self_influence[0] = 1e-20
    assert harmful(scores, reference, everyone(N)).evidence[0] >= 0.4
    assert not harmful(scores, reference, everyone(N)).selected[0]


def conforming(harm: int, seed: int, shift: float) -> Conformity:
    """Normal conformity; the labels of the first `harm` points fit less."""
    g = torch.Generator().manual_seed(100 + seed)
    values = torch.randn(N, generator=g, dtype=torch.float64)
    values[:harm] -= shift
    return Conformity(values, torch.randn(M, generator=g, dtype=torch.float64))


def test_normal_scores_are_the_quantiles_of_ranks() -> None:
    found = normal_scores(torch.tensor([0.5, 9.0, torch.nan, 1.0]), torch.tensor([1.0, 2.0, torch.nan]))
    expected = torch.special.ndtri(torch.tensor([0.5, 2.5, torch.nan, 1.5], dtype=torch.float64) / 3)
    torch.testing.assert_close(found, expected, equal_nan=True)


def test_two_weak_signs_of_harm_find_more_than_one_at_the_same_rate() -> None:
    recalls, shares = [], []
    for seed in range(20):
        scores, reference = case(100, seed, shift=2)
        alone = harmful(scores, reference, everyone(N))
        both = harmful(scores, reference, everyone(N), conformity=conforming(100, seed, shift=2))
        recalls.append([found.selected[:100].double().mean().item() for found in (alone, both)])
        shares.append(false_share(both, 100))
    before, after = torch.tensor(recalls).mean(0).tolist()
    assert before < 0.35
    assert after > before + 0.3  # their sum is shifted by 2 sqrt(2) spreads
    assert sum(shares) / len(shares) <= 0.2 + 0.06  # 3 standard errors over draws of the reference


def test_labels_that_fit_as_the_queries_do_add_no_discoveries() -> None:
    found = [harmful(*case(0, s), everyone(N), conformity=conforming(0, s, shift=0)) for s in range(60)]
    assert sum(bool(f.selected.any()) for f in found) <= 60 * 0.2 + 3 * (60 * 0.2 * 0.8) ** 0.5  # as above


def test_a_label_that_cannot_be_judged_leaves_the_decision_to_influence() -> None:
    scores, reference = case(100, seed=0, shift=3)
    unknown = Conformity(torch.full((N,), torch.nan), torch.full((M,), torch.nan))
    alone, without = harmful(scores, reference, everyone(N)), harmful(scores, reference, everyone(N), 0.2, unknown)
    torch.testing.assert_close(without.evidence, alone.evidence)
    assert alone.selected.any()


def test_a_label_that_cannot_be_judged_counts_as_one_that_fits_as_half_of_the_queries_do() -> None:
    scores, reference = case(100, seed=0, shift=3)
    queries = conforming(0, 0, shift=0).queries
    found = [
        harmful(
            scores, reference, everyone(N), conformity=Conformity(torch.full((N,), value, dtype=torch.float64), queries)
        )
        for value in (torch.nan, queries.median().item())
    ]
    torch.testing.assert_close(found[0].evidence, found[1].evidence)


def test_a_label_that_does_not_fit_is_no_harm_where_influence_is_within_its_error() -> None:
    scores, reference = case(100, seed=0)
    noisy = Influences(scores.influence, 100 * scores.influence.abs(), scores.self_influence)
    assert not harmful(noisy, reference, everyone(N), conformity=conforming(100, 0, shift=9)).selected.any()


def test_a_query_is_left_out_of_its_own_mean() -> None:
    pairs = torch.tensor([[100.0, 1.0, 3.0], [2.0, 100.0, 4.0], [5.0, 7.0, 100.0]])
    torch.testing.assert_close(trusted(pairs, torch.ones(3)).influence, torch.tensor([2.0, 3.0, 6.0]).double())


def test_the_largest_set_of_posteriors_within_q_is_taken() -> None:
    posterior = torch.tensor([0.95, 0.1, 0.9, 0.6, 0.3])  # running mean of being right: .05, .075, .183, .3125
    found = mislabeled(posterior, everyone(5), q=0.2)
    assert found.selected.tolist() == [True, False, True, True, False]
    assert found.expected_false_rate == pytest.approx(0.55 / 3)
    assert found.threshold == pytest.approx(0.4)


def test_calibrated_posteriors_keep_the_false_share_at_q() -> None:
    g = torch.Generator().manual_seed(0)
    posterior = torch.rand(20_000, generator=g)
    wrong = torch.rand(20_000, generator=g) < posterior
    found = mislabeled(posterior, everyone(20_000), q=0.2)
    assert (~wrong[found.selected]).double().mean().item() == pytest.approx(0.2, abs=0.02)  # 4 sigma of 8,000 draws


def test_points_that_are_not_eligible_neither_count_nor_are_selected() -> None:
    scores, reference = case(100, seed=0)
    eligible = torch.arange(N) % 2 == 0
    half = Influences(scores.influence[::2], scores.influence_se[::2], scores.self_influence[::2])
    found = harmful(scores, reference, eligible)
    assert not found.selected[~eligible].any()
    assert torch.equal(found.selected[::2], harmful(half, reference, everyone(N // 2)).selected)
    labels = mislabeled(torch.full((N,), 0.99), eligible)
    assert torch.equal(labels.selected, eligible)


def test_q_values_say_at_which_rate_a_point_enters() -> None:
    scores, reference = case(100, seed=0)
    found = harmful(scores, reference, everyone(N), q=0.1)
    assert torch.equal(found.q_value <= 0.3, harmful(scores, reference, everyone(N), q=0.3).selected)
    assert found.evidence[found.selected].max().item() == found.threshold


def test_nothing_found_is_an_empty_discovery() -> None:
    found = mislabeled(torch.full((4,), 0.5), everyone(4))
    assert not found.selected.any()
    assert (found.threshold, found.expected_false_rate) == (0.0, 0.0)


def test_bad_input_is_one_clear_line() -> None:
    with pytest.raises(InfluenceError, match=r"q = 1\.5"):
        mislabeled(torch.ones(2), everyone(2), q=1.5)
    with pytest.raises(InfluenceError, match="row 1"):
        mislabeled(torch.tensor([0.5, torch.nan]), everyone(2))
    with pytest.raises(InfluenceError, match=r"\[m, m\]"):
        trusted(torch.ones(2, 3), torch.ones(2))
    scores, reference = case(0, seed=0)
    reference.influence[3] = torch.nan
    with pytest.raises(InfluenceError, match="query 3"):
        harmful(scores, reference, everyone(N))


def resting(high: int, seed: int) -> Influences:
    """Half of the points harm; they rest on themselves as the others do, the first `high` of them far more."""
    g = torch.Generator().manual_seed(seed)
    own = torch.rand(N, generator=g, dtype=torch.float64)
    own[:high] += 1
    sign = torch.where(torch.arange(N) < N // 2, -1.0, 1.0).double()
    return Influences(sign, torch.full_like(sign, 0.01), own)


def test_memorized_keeps_false_discoveries_at_q_where_good_points_rest_on_themselves_as_others_do() -> None:
    found = [memorized(resting(0, seed), everyone(N)) for seed in range(60)]
    assert sum(bool(f.selected.any()) for f in found) <= 60 * 0.2 + 3 * (60 * 0.2 * 0.8) ** 0.5
    shares = [false_share(memorized(resting(100, seed), everyone(N)), 100) for seed in range(20)]
    assert sum(shares) / 20 <= 0.2 + 3 * 0.1 / 20**0.5
    assert memorized(resting(100, 0), everyone(N)).selected[:100].all()


def test_memorized_takes_no_point_that_helps_or_is_neutral_however_much_rests_on_it() -> None:
    scores = resting(100, seed=0)
    scores.influence[:50] = -0.009  # within one standard error
    scores.influence[60:500] = 1.0
    found = memorized(scores, everyone(N))
    assert not found.selected[:50].any()
    assert not found.selected[60:].any()
    scores.influence[3] = torch.nan
    with pytest.raises(InfluenceError, match="row 3"):
        memorized(scores, everyone(N))


def test_memorized_without_points_that_generalize_finds_nothing() -> None:
    scores = resting(100, seed=0)
    assert not memorized(
        Influences(-scores.influence.abs(), scores.influence_se, scores.self_influence), everyone(N)
    ).selected.any()
