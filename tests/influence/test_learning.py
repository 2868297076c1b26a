import pytest
import torch
from torch import Tensor

from influence import InfluenceError, cheap_signals
from influence.learning import learning_signals

LABELS = torch.zeros(6, dtype=torch.int64)


def logits(*p_y: float) -> Tensor:
    """Of two classes, with these probabilities of class 0."""
    return torch.tensor([[p, 1 - p] for p in p_y], dtype=torch.float64).log()


# right before p_y >= .95 and still right | memorized at once | right, then forgotten | wrong until memorized |
# right first at the end | always wrong
COURSE = torch.stack(
    [
        logits(0.6, 0.96, 0.8, 0.2, 0.1, 0.1),
        logits(0.8, 0.97, 0.4, 0.3, 0.3, 0.2),
        logits(0.99, 0.99, 0.3, 0.98, 0.7, 0.3),
    ]
)


def test_only_what_was_right_before_it_was_memorized_and_stays_right_counts() -> None:
    assert learning_signals(COURSE, LABELS).pre_memorization.tolist() == [1, 0, 0, 0, 1, 0]


def test_it_is_the_smaller_of_the_best_masked_accuracy_and_the_last_accuracy() -> None:
    generator = torch.Generator().manual_seed(0)
    course = 3 * torch.randn(5, 200, 3, generator=generator)
    labels = torch.randint(3, (200,), generator=generator)
    accuracy = torch.stack([(one.argmax(1) == labels).float() for one in course])
    mask = torch.stack([(one.softmax(1).gather(1, labels[:, None])[:, 0] < 0.95).float() for one in course])
    expected = torch.minimum((accuracy * mask).amax(0), accuracy[-1])
    found = learning_signals(course, labels).pre_memorization
    assert found.equal(expected.double())
    assert 0 < found.mean() < 1


def test_the_other_signals_are_means_over_checkpoints() -> None:
    found = learning_signals(COURSE, LABELS)
    for name in ("loss", "el2n", "confidence", "entropy"):
        expected = sum(getattr(cheap_signals(one, LABELS), name) for one in COURSE) / 3
        torch.testing.assert_close(getattr(found, name), expected, rtol=1e-12, atol=0)  # rounding alone


def test_the_point_learned_first_was_right_and_sure_at_most_checkpoints() -> None:
    learned_at = torch.tensor([0, 1, 2, 3])  # checkpoint from which on a point's label is predicted
    margin = torch.where(torch.arange(4)[:, None] >= learned_at, 3.0, -1.0)  # [K, n]
    found = learning_signals(torch.stack([margin, torch.zeros_like(margin)], 2), torch.zeros(4, dtype=torch.int64))
    assert found.accuracy.tolist() == [1.0, 0.75, 0.5, 0.25]
    for falling in (found.confidence, found.max_probability, -found.loss, -found.el2n, -found.entropy):
        assert falling.argsort(descending=True).tolist() == [0, 1, 2, 3]


def test_entropy_of_a_certain_prediction_is_zero() -> None:
    found = learning_signals(torch.tensor([[[0.0, 2000.0]]]), torch.tensor([1]))  # a probability underflows
    assert found.entropy.tolist() == [0.0]


@pytest.mark.parametrize(("logits", "labels"), [((0, 3, 2), 3), ((2, 3, 2), 4), ((3, 2), 3)])
def test_no_checkpoint_or_labels_of_other_points_are_refused(logits: tuple[int, ...], labels: int) -> None:
    with pytest.raises(InfluenceError, match=r"give logits \[K, n, C\]"):
        learning_signals(torch.zeros(logits), torch.zeros(labels, dtype=torch.int64))


def test_a_label_without_a_logit_is_refused() -> None:
    with pytest.raises(InfluenceError, match="label 2: the logits have 2 classes"):
        learning_signals(COURSE, LABELS + 2)
