import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from influence import InfluenceError, auc, average_precision, lds, loo_correlation, pearson, precision_recall, spearman
from influence.validation import bootstrap, group_rises, noise_ceiling


def test_auc_and_average_precision_agree_with_scikit_learn_with_and_without_ties() -> None:
    generator = torch.Generator().manual_seed(0)
    positive = torch.rand(200, generator=generator) < 0.2
    for scores in (torch.randn(200, generator=generator), torch.randint(5, (200,), generator=generator).float()):
        assert auc(scores, positive) == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)
        assert average_precision(scores, positive) == pytest.approx(
            average_precision_score(positive, scores), abs=1e-12
        )


def test_scores_that_say_nothing_have_auc_one_half() -> None:
    assert auc(torch.zeros(10), torch.arange(10) < 3) == 0.5


def test_a_ranking_of_one_kind_only_is_refused() -> None:
    with pytest.raises(InfluenceError, match="10 of 10 points are positive"):
        auc(torch.zeros(10), torch.ones(10, dtype=torch.bool))


def test_precision_and_recall_of_a_found_set() -> None:
    found, positive = torch.tensor([1, 1, 1, 0, 0]).bool(), torch.tensor([1, 0, 1, 1, 0]).bool()
    quality = precision_recall(found, positive)
    assert quality.precision == pytest.approx(2 / 3)
    assert quality.recall == pytest.approx(2 / 3)


def test_spearman_is_blind_to_monotone_changes_and_shares_ranks_among_ties() -> None:
    x = torch.randn(30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert spearman(x, x.exp()) == pytest.approx(1)
    assert spearman(x, -x) == pytest.approx(-1)
    assert spearman(torch.tensor([1.0, 1.0, 2.0]), torch.tensor([0.0, 0.0, 5.0])) == pytest.approx(1)


def test_lds_of_additive_losses_is_one_and_of_unrelated_scores_about_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    influence = torch.randn(40, 200, generator=generator, dtype=torch.float64)
    subsets = torch.rand(40, 40, generator=generator) < 0.5
    losses = 3 - subsets.double() @ influence  # a helpful point lowers the loss of a model trained on it
    torch.testing.assert_close(lds(influence, subsets, losses), torch.ones(200, dtype=torch.float64))
    noise = torch.randn(40, 200, generator=generator, dtype=torch.float64)
    assert abs(float(lds(noise, subsets, losses).mean())) < 0.1  # 200 correlations of sd 1/sqrt(39): 9 sd


def test_a_query_whose_prediction_never_changes_counts_as_no_correlation() -> None:
    generator = torch.Generator().manual_seed(0)
    influence = torch.randn(20, 2, generator=generator, dtype=torch.float64)
    influence[:, 1] = 0
    subsets = torch.rand(30, 20, generator=generator) < 0.5
    losses = -(subsets.double() @ influence) + torch.tensor([0.0, 1.0]) * torch.rand(30, 1, generator=generator)
    torch.testing.assert_close(lds(influence, subsets, losses), torch.tensor([1.0, 0.0], dtype=torch.float64))


def test_a_group_rises_by_the_sum_of_its_members() -> None:
    influence = torch.arange(6.0).reshape(3, 2)
    removed = torch.tensor([[True, False, True], [False, False, False]])
    assert group_rises(influence, removed).tolist() == [[4.0, 6.0], [0.0, 0.0]]


def noisy_retrainings(retrains: int, noise: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Expected losses of 100 subsets on 200 queries, and retrainings that scatter about them."""
    generator = torch.Generator().manual_seed(0)
    expected = torch.randn(100, 200, generator=generator, dtype=torch.float64)
    drawn = torch.randn(100, retrains, 200, generator=generator, dtype=torch.float64)
    return expected, expected[:, None] + noise * drawn


@pytest.mark.parametrize("retrains", [2, 5])
def test_the_noise_ceiling_is_what_the_expected_losses_themselves_reach(retrains: int) -> None:
    expected, losses = noisy_retrainings(retrains, noise=1.0)
    reached = sum(spearman(*columns) for columns in zip(expected.T, losses.mean(1).T)) / 200
    # Spearman and Brown's formula is exact for Pearson's correlation; that of ranks is up to .02 below it
    assert float(noise_ceiling(losses).mean()) == pytest.approx(reached, abs=0.03)


def test_the_noise_ceiling_is_one_without_noise_and_about_zero_of_noise_alone() -> None:
    exact = noisy_retrainings(4, noise=0.0)[1]
    torch.testing.assert_close(noise_ceiling(exact), torch.ones(200, dtype=torch.float64))
    alone = noisy_retrainings(4, noise=1e6)[1]
    assert float(noise_ceiling(alone).mean()) < 0.3  # the root of the positive half of correlations of sd .1
    with pytest.raises(InfluenceError, match="1 model per subset"):
        noise_ceiling(exact[:, :1])


def test_loo_correlation_is_over_all_pairs_of_values_and_of_ranks() -> None:
    influence = torch.tensor([[1.0, 2.0], [3.0, 5.0]])
    assert loo_correlation(influence, 2 * influence + 1).pearson == pytest.approx(1)
    bent = loo_correlation(influence, influence.exp())
    assert bent.spearman == pytest.approx(1)
    assert bent.pearson < 0.95
    assert pearson(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 3.0, 2.0])) == pytest.approx(0.5)


def test_the_bootstrap_interval_holds_the_mean_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    one = torch.zeros(60, dtype=torch.int64)
    hits = 0
    for turn in range(200):
        values = torch.rand(60, generator=generator)
        interval = bootstrap(lambda rows, values=values: float(values[rows].mean()), one, resamples=200, seed=turn)
        assert interval.value == pytest.approx(float(values.mean()))
        hits += interval.low <= 0.5 <= interval.high
    assert 178 <= hits <= 199  # binomial(200, .95): mean 190, sd 3.1; percentiles of 60 items fall a little short


def test_the_bootstrap_keeps_the_size_of_every_stratum() -> None:
    strata = torch.arange(50) % 7
    counts: list[list[int]] = []

    def statistic(rows: torch.Tensor) -> float:
        counts.append(torch.bincount(strata[rows], minlength=7).tolist())
        return 0.0

    bootstrap(statistic, strata, resamples=20)
    assert all(count == torch.bincount(strata).tolist() for count in counts)
