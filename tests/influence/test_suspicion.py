import math

import pytest
import torch
from torch import Tensor

from influence import InfluenceError
from influence.suspicion import EVIDENCE, Suspicion, knn_votes, suspect, two_round
from tests.influence.cases import on_two_ranks

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
    assert found.stack.weights[0].item() == pytest.approx(1, abs=0.15)  # the log-probabilities were calibrated


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
    weights, offsets, transition = found.stack.weights, found.stack.offsets, found.stack.transition
    belief = (weights[0] * log_probs + weights[1] * math.log(0.25) + offsets).softmax(1)
    joint = belief * transition[:, given].T  # P(true = t, given = y), [n, C]
    expected = joint / joint.sum(1, keepdim=True)
    torch.testing.assert_close(found.label_probs, expected, rtol=1e-7, atol=1e-9)
    right = expected.gather(1, given[:, None])[:, 0]
    torch.testing.assert_close(found.posterior, 1 - right, rtol=1e-6, atol=1e-9)  # 1 - p cancels here, not there
    torch.testing.assert_close(found.score, ((1 - right) / right).log(), rtol=1e-5, atol=1e-6)
    assert found.noise_rate == pytest.approx(found.posterior.mean().item())


def test_a_certain_belief_stays_finite() -> None:
    log_probs = torch.tensor([[0.0, -900.0], [-900.0, 0.0]] * 10, dtype=torch.float64)
    labels = torch.tensor([0, 1] * 9 + [0, 0])
    found = suspect(log_probs, torch.ones(20, 2), labels, torch.ones(20, dtype=torch.bool), evidence=0.0)
    assert torch.isfinite(found.score).all()
    assert found.score.argmax() == 19
    assert found.suggested_label[19] == 1


def test_points_outside_the_fit_do_not_move_it_but_are_scored() -> None:
    _, given, log_probs, votes = planted(0.1)
    fitted = torch.arange(N) < 2000
    other = torch.where(fitted, given, (given + 1) % C)
    a, b = suspect(log_probs, votes, given, fitted), suspect(log_probs, votes, other, fitted)
    assert torch.equal(a.stack.transition, b.stack.transition)
    assert torch.equal(a.stack.weights, b.stack.weights)
    assert a.noise_rate == b.noise_rate
    assert not torch.equal(a.posterior[~fitted], b.posterior[~fitted])


def test_neighbours_are_others_and_agree_with_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("SEEKING", 20), ("VOTING", 16), ("REFINED", 100)):
        monkeypatch.setattr(f"influence.suspicion.{name}", size)
    g = torch.Generator().manual_seed(3)
    x = torch.randn(50, 6, generator=g, dtype=torch.float64) + 100
    labels = torch.randint(3, (50,), generator=g)
    voters = torch.arange(50) < 35
    found = knn_votes(x, labels, 3, voters, k=4)
    distances = torch.cdist(x, x).fill_diagonal_(torch.inf).masked_fill(~voters, torch.inf)
    expected = torch.eye(3, dtype=torch.float64)[labels[distances.topk(4, largest=False).indices]].sum(1)
    torch.testing.assert_close(found, expected)
    for shared in on_two_ranks(lambda share, add_up: knn_votes(x, labels, 3, voters, 4, share, add_up)):
        assert shared.equal(found)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16])
def test_inputs_of_any_dtype_have_the_neighbours_of_their_values(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(4)
    x = torch.randint(0, 250, (60, 40), generator=g).to(dtype)  # squares beyond what float16 can hold
    labels, everyone = torch.randint(3, (60,), generator=g), torch.ones(60, dtype=torch.bool)
    assert knn_votes(x, labels, 3, everyone, k=5).equal(knn_votes(x.double(), labels, 3, everyone, k=5))


def test_neighbours_nearer_than_float32_tells_apart_are_found() -> None:
    g = torch.Generator().manual_seed(5)
    centres = torch.randn(4, 8, generator=g, dtype=torch.float64) * 1e4
    x = centres.repeat_interleave(30, 0) + torch.randn(120, 8, generator=g, dtype=torch.float64)
    labels, everyone = torch.randint(3, (120,), generator=g), torch.ones(120, dtype=torch.bool)
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(torch.inf)
    expected = torch.eye(3, dtype=torch.float64)[labels[distances.topk(5, largest=False).indices]].sum(1)
    assert knn_votes(x, labels, 3, everyone, k=5).equal(expected)


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
    votes = knn_votes(inputs, given, C, mask)
    return two_round(out_of_fold, votes, given, mask), given != truth, seen


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

    def spy(out_of_fold: Tensor, seen: Tensor, labels: Tensor, fitted: Tensor, evidence: float = EVIDENCE) -> Suspicion:
        votes.append(seen[7])
        return suspect(out_of_fold, seen, labels, fitted, evidence)

    monkeypatch.setattr("influence.suspicion.suspect", spy)
    everyone = torch.ones(len(given), dtype=torch.bool)
    for shift in (0, 1):
        labels = torch.where(torch.arange(len(given)) == 7, (truth + shift) % C, given)
        two_round(lambda kept: centroids(inputs, given, kept), knn_votes(inputs, labels, C, everyone), labels, everyone)
    assert len(votes) == 4
    assert all(torch.equal(v, votes[0]) for v in votes)


def test_removed_points_are_scored_but_never_trained_on() -> None:
    removed = torch.arange(300) < 40
    found, wrong, seen = run_two_rounds(~removed)
    assert not any(bool((kept & removed).any()) for kept in seen)
    assert torch.equal(found.posterior[removed] > 0.5, wrong[removed])


def test_errors_that_prefer_a_class_are_found() -> None:
    found, wrong, _ = run_two_rounds(consistent=True)
    assert torch.equal(found.posterior > 0.5, wrong)
    assert found.noise_rate == pytest.approx(wrong.double().mean().item(), abs=0.02)  # 1 sigma of 300
    preferred = found.stack.transition.roll(-1, 1).diagonal()  # from each class to the next
    assert found.stack.transition.sum() - found.stack.transition.trace() < 1.1 * preferred.sum()


def test_an_error_that_can_be_seen_in_the_input_is_taken_for_the_truth() -> None:
    # The known blind spot: a whole cluster carries one wrong label, and nothing that reads labels can tell.
    inputs, truth, _ = blobs()
    wrong = (truth == 0) & (inputs[:, 1] > 0.5)
    inputs = inputs + 10 * wrong[:, None]
    given = torch.where(wrong, 1, truth)
    everyone = torch.ones(len(given), dtype=torch.bool)
    found = suspect(centroids(inputs, given, everyone), knn_votes(inputs, given, C, everyone), given, everyone)
    assert int(wrong.sum()) > 2 * 10  # enough to be one another's nearest neighbours
    assert (found.posterior[wrong] > 0.5).double().mean() < 0.1


def test_clean_labels_are_left_alone_in_one_round() -> None:
    inputs, truth, _ = blobs()
    everyone = torch.ones(len(truth), dtype=torch.bool)
    rounds: list[Tensor] = []

    def out_of_fold(kept: Tensor) -> Tensor:
        rounds.append(kept)
        return centroids(inputs, truth, kept)

    found = two_round(out_of_fold, knn_votes(inputs, truth, C, everyone), truth, everyone)
    assert len(rounds) == 1
    assert not (found.posterior > 0.5).any()
    assert found.noise_rate < 0.005  # one point of 300 would be .003


@pytest.mark.parametrize("n", [300, N])
def test_shuffled_signals_find_nothing(n: int) -> None:
    # Any noise rate explains labels that signals know nothing about: without evidence for it, none is claimed.
    _, given, log_probs, votes = planted(0.1, n)
    shuffled = log_probs[torch.randperm(n, generator=torch.Generator().manual_seed(4))]
    found = suspect(shuffled, votes, given, torch.ones(n, dtype=torch.bool))
    assert not (found.posterior > 0.5).any()
    assert found.noise_rate < 1e-6


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
