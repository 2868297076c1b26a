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
COURSE = [
    logits(0.6, 0.96, 0.8, 0.2, 0.1, 0.1),
    logits(0.8, 0.97, 0.4, 0.3, 0.3, 0.2),
    logits(0.99, 0.99, 0.3, 0.98, 0.7, 0.3),
]


def test_only_what_was_right_before_it_was_memorized_and_stays_right_counts() -> None:
    assert learning_signals(COURSE, LABELS).pre_memorization.tolist() == [1, 0, 0, 0, 1, 0]


def test_it_is_the_smaller_of_the_best_masked_accuracy_and_the_last_accuracy() -> None:
    generator = torch.Generator().manual_seed(0)
    course = [3 * torch.randn(200, 3, generator=generator) for _ in range(5)]
    labels = torch.randint(3, (200,), generator=generator)
    accuracy = torch.stack([(one.argmax(1) == labels).float() for one in course])
    mask = torch.stack([(one.softmax(1).gather(1, labels[:, None])[:, 0] < 0.95).float() for one in course])
    expected = torch.minimum((accuracy * mask).amax(0), accuracy[-1])
    found = learning_signals(course, labels).pre_memorization
    assert found.equal(expected)
    assert 0 < found.mean() < 1


def test_the_other_signals_are_means_over_checkpoints() -> None:
    found = learning_signals(COURSE, LABELS)
    for name in ("loss", "el2n", "confidence"):
        expected = sum(getattr(cheap_signals(one, LABELS), name) for one in COURSE) / 3
        torch.testing.assert_close(getattr(found, name), expected, rtol=1e-12, atol=0)  # rounding alone


def test_no_checkpoint_is_one_clear_line() -> None:
    with pytest.raises(InfluenceError, match=r"no checkpoint given[^\n]*$"):
        learning_signals([], LABELS)
