import math

import pytest
import torch
from torch import Tensor

from influence import InfluenceError
from influence.suspicion import Suspicion, knn_votes, suspect, two_round

N, C = 3000, 4


def planted(rate: float, n: int = N) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """True labels, given labels of which a share is wrong, calibrated log-probabilities and votes."""
    g = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(n, C, generator=g, dtype=torch.float64)
    log_probs = logits.log_softmax(1)
    truth = torch.multinomial(log_probs.exp(), 1, generator=g)[:, 0]
    flipped = torch.rand(n, generator=g) < rate
    given = torch.where(flipped, (truth + torch.randint(1, C, (n,), generator=g)) % C, truth)
    votes = torch.ones(n, C, dtype=torch.float64)  # neighbours that say nothing
    return truth, given, log_probs, votes


def blobs(n: int = 300, consistent: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Well separated clusters, one per class; a tenth of the given labels is wrong, at random or always the next."""
    g = torch.Generator().manual_seed(2)
    truth = torch.arange(n) % C
    inputs = 10 * torch.eye(C)[truth] + torch.randn(n, C, generator=g)
    shift = torch.ones_like(truth) if consistent else torch.randint(1, C, (n,), generator=g)
    given = torch.where(torch.rand(n, generator=g) < 0.1, (truth + shift) % C, truth)
    return inputs, truth, given


def centroids(inputs: Tensor, given: Tensor, kept: Tensor) -> Tensor:
    """Out-of-fold log-probabilities of a nearest-centroid model, two folds."""
    fold = torch.arange(len(given)) // C % 2
    out = torch.empty(len(given), C, dtype=torch.float64)
    for f in (0, 1):
        means = torch.stack([inputs[kept & (fold != f) & (given == c)].mean(0) for c in range(C)])
        out[fold == f] = -torch.cdist(inputs[fold == f], means).double().square()
    return out.div(10).log_softmax(1)


@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_the_noise_rate_is_found_from_given_labels_alone(rate: float) -> None:
    _, given, log_probs, votes = planted(rate)
    found = suspect(log_probs, votes, given, torch.ones(N, dtype=torch.bool))
    assert found.noise_rate == pytest.approx(rate, abs=0.03)  # about 3 standard errors: confusion inflates binomial's
    assert found.weights.out_of_fold == pytest.approx(1, abs=0.15)  # the log-probabilities were calibrated


def test_the_posterior_is_calibrated() -> None:
    truth, given, log_probs, votes = planted(0.2)
    found = suspect(log_probs, votes, given, torch.ones(N, dtype=torch.bool))
    wrong = given != truth
    for low, high in ((0.0, 0.2), (0.2, 0.6), (0.6, 1.0)):
        bin_ = (found.posterior >= low) & (found.posterior <= high)
        error = 4 * math.sqrt(0.25 / int(bin_.sum()))  # 4 sigma of a share
        assert wrong[bin_].double().mean().item() == pytest.approx(found.posterior[bin_].mean().item(), abs=error)


def test_score_and_posterior_are_their_definitions() -> None:
    _, given, log_probs, votes = planted(0.1)
    found = suspect(log_probs, votes, given, torch.ones(N, dtype=torch.bool))
    w, eps = found.weights, found.noise_rate
    belief = (w.out_of_fold * log_probs + w.neighbours * math.log(0.25)).softmax(1)
    p = belief.gather(1, given[:, None])[:, 0]
    expected = eps * (1 - p) / (C - 1) / ((1 - eps) * p + eps * (1 - p) / (C - 1))
    torch.testing.assert_close(found.posterior, expected, rtol=1e-7, atol=1e-9)  # 1 - p cancels in the formula
    torch.testing.assert_close(found.score, ((1 - p) / p).log(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.label_probs.sum(1), torch.ones(N, dtype=torch.float64))


def test_a_certain_belief_stays_finite() -> None:
    log_probs = torch.tensor([[0.0, -900.0], [-900.0, 0.0]] * 10, dtype=torch.float64)
    labels = torch.tensor([0, 1] * 9 + [0, 0])
    found = suspect(log_probs, torch.ones(20, 2), labels, torch.ones(20, dtype=torch.bool))
    assert torch.isfinite(found.score).all()
    assert found.score.argmax() == 19
    assert found.suggested_label[19] == 1


def test_points_outside_the_fit_do_not_move_it_but_are_scored() -> None:
    _, given, log_probs, votes = planted(0.1)
    fitted = torch.arange(N) < 2000
    other = torch.where(fitted, given, (given + 1) % C)
    a, b = suspect(log_probs, votes, given, fitted), suspect(log_probs, votes, other, fitted)
    assert a.weights == b.weights
    assert not torch.equal(a.posterior[~fitted], b.posterior[~fitted])


def test_neighbours_are_others_and_agree_with_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("influence.suspicion.DISTANCES", 700)  # chunks of 20 rows
    g = torch.Generator().manual_seed(3)
    x = torch.randn(50, 6, generator=g, dtype=torch.float64) + 100
    labels = torch.randint(3, (50,), generator=g)
    voters = torch.arange(50) < 35
    found = knn_votes(x, labels, 3, voters, k=4)
    distances = torch.cdist(x, x).fill_diagonal_(torch.inf).masked_fill(~voters, torch.inf)
    expected = torch.eye(3, dtype=torch.float64)[labels[distances.topk(4, largest=False).indices]].sum(1)
    torch.testing.assert_close(found, expected)


def test_more_neighbours_than_voters_are_refused() -> None:
    with pytest.raises(InfluenceError, match="k = 5 neighbours of 5 voting"):
        knn_votes(torch.randn(9, 2), torch.zeros(9, dtype=torch.int64), 2, torch.arange(9) < 5, k=5)


def run_two_rounds(in_train: Tensor | None = None, consistent: bool = False) -> tuple[Suspicion, Tensor, list[Tensor]]:
    inputs, truth, given = blobs(consistent=consistent)
    seen: list[Tensor] = []

    def out_of_fold(kept: Tensor) -> Tensor:
        seen.append(kept)
        return centroids(inputs, given, kept)

    mask = torch.ones(len(given), dtype=torch.bool) if in_train is None else in_train
    return two_round(out_of_fold, inputs, given, C, mask), given != truth, seen


def test_two_rounds_find_flips_between_clusters_and_their_true_labels() -> None:
    found, wrong, _ = run_two_rounds()
    assert torch.equal(found.posterior > 0.5, wrong)  # clusters lie 14 apart at unit spread
    assert torch.equal(found.suggested_label, torch.arange(300) % C)
    assert found.noise_rate == pytest.approx(wrong.double().mean().item(), abs=0.02)  # 1 sigma of 300


def test_the_second_round_trains_without_what_the_first_found() -> None:
    _, wrong, seen = run_two_rounds()
    assert len(seen) == 2
    assert seen[0].all()
    assert torch.equal(seen[1], ~wrong)


def test_a_points_own_label_never_reaches_its_votes(monkeypatch: pytest.MonkeyPatch) -> None:
    # In the second round either: votes for improved labels would echo it, and the noise rate would collapse.
    inputs, truth, given = blobs()
    votes: list[Tensor] = []

    def spy(out_of_fold: Tensor, seen: Tensor, labels: Tensor, fitted: Tensor) -> Suspicion:
        votes.append(seen[7])
        return suspect(out_of_fold, seen, labels, fitted)

    monkeypatch.setattr("influence.suspicion.suspect", spy)
    everyone = torch.ones(len(given), dtype=torch.bool)
    for shift in (0, 1):
        labels = torch.where(torch.arange(len(given)) == 7, (truth + shift) % C, given)
        two_round(lambda kept: centroids(inputs, given, kept), inputs, labels, C, everyone)
    assert len(votes) == 4
    assert all(torch.equal(v, votes[0]) for v in votes)


def test_removed_points_are_scored_but_never_trained_on() -> None:
    removed = torch.arange(300) < 40
    found, wrong, seen = run_two_rounds(~removed)
    assert not any(bool((kept & removed).any()) for kept in seen)
    assert torch.equal(found.posterior[removed] > 0.5, wrong[removed])


def test_a_consistent_error_is_taken_for_the_truth() -> None:
    # The known blind spot: neighbours say how often it happens, so no uniform noise is left to explain it.
    found, wrong, _ = run_two_rounds(consistent=True)
    assert not (found.posterior[wrong] > 0.5).any()


def test_shuffled_signals_find_nothing() -> None:
    _, given, log_probs, votes = planted(0.1)
    shuffled = log_probs[torch.randperm(N, generator=torch.Generator().manual_seed(4))]
    found = suspect(shuffled, votes, given, torch.ones(N, dtype=torch.bool))
    # Uniform labels bear no trace of a shuffled belief: the fit flattens it, and no label stands out from another.
    assert found.posterior.std() < 0.05


@pytest.mark.parametrize("bad", ["shape", "nan", "empty"])
def test_bad_input_is_one_clear_line(bad: str) -> None:
    _, given, log_probs, votes = planted(0.1, n=20)
    fitted = torch.ones(20, dtype=torch.bool)
    if bad == "shape":
        votes = votes[:10]
    if bad == "nan":
        log_probs[7, 1] = torch.nan
    if bad == "empty":
        fitted = ~fitted
    with pytest.raises(InfluenceError, match={"shape": "shapes", "nan": "row 7", "empty": "0 points to fit"}[bad]):
        suspect(log_probs, votes, given, fitted)
