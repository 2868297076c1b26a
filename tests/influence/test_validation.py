import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from influence import InfluenceError, auc, average_precision, lds, loo_correlation, pearson, precision_recall, spearman


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


def test_loo_correlation_is_pearson_over_all_pairs() -> None:
    influence = torch.tensor([[1.0, 2.0], [3.0, 5.0]])
    assert loo_correlation(influence, 2 * influence + 1) == pytest.approx(1)
    assert pearson(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 3.0, 2.0])) == pytest.approx(0.5)
