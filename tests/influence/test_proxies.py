"""The proxies are their definitions, and larger means more memorized in every one of them."""

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from influence import InfluenceError, cheap_signals
from influence.proxies import held_out_retrain, learning_events, loss_curvature


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_learning_events_are_means_over_the_checkpoints() -> None:
    logits, labels = drawn(3, 20, 4), torch.arange(20) % 4
    found = learning_events(logits, labels)
    signals = [cheap_signals(one, labels) for one in logits]
    torch.testing.assert_close(found.confidence, 1 - torch.stack([one.confidence for one in signals]).mean(0))
    torch.testing.assert_close(found.entropy, torch.stack([one.entropy for one in signals]).mean(0))
    torch.testing.assert_close(found.max_probability, 1 - logits.softmax(2).amax(2).mean(0))
    wrong = torch.stack([one.predicted != labels for one in signals]).double()
    torch.testing.assert_close(found.accuracy, wrong.mean(0))


@pytest.mark.parametrize("event", ["confidence", "max_probability", "entropy", "accuracy"])
def test_the_point_learned_last_is_the_most_memorized(event: str) -> None:
    learned_at = torch.tensor([0, 1, 2, 3])  # checkpoint from which on a point's label is predicted
    margin = torch.where(torch.arange(4)[:, None] >= learned_at, 3.0, -1.0)  # [K, B]
    logits = torch.stack([margin, torch.zeros_like(margin)], 2)
    found: Tensor = getattr(learning_events(logits, torch.zeros(4, dtype=torch.int64)), event)
    assert found.argsort().tolist() == [0, 1, 2, 3]


def test_entropy_of_a_certain_prediction_is_zero() -> None:
    found = learning_events(torch.tensor([[[0.0, 2000.0]]]), torch.tensor([1]))  # a probability underflows
    assert found.entropy.tolist() == [0.0]


@pytest.mark.parametrize(("logits", "labels"), [((0, 3, 2), 3), ((2, 3, 2), 4), ((3, 2), 3)])
def test_events_of_no_checkpoint_or_of_other_points_are_refused(logits: tuple[int, ...], labels: int) -> None:
    with pytest.raises(InfluenceError, match=r"give logits \[K, B, C\]"):
        learning_events(torch.zeros(logits), torch.zeros(labels, dtype=torch.int64))


def test_held_out_retraining_is_half_the_symmetric_divergence() -> None:
    before, after = drawn(10, 4), drawn(10, 4, seed=1)
    p, q = Categorical(logits=before), Categorical(logits=after)
    torch.testing.assert_close(held_out_retrain(before, after), (kl_divergence(p, q) + kl_divergence(q, p)) / 2)
    assert held_out_retrain(before, before + 1).abs().max() < 1e-12  # logits are known up to a constant


def test_the_curvature_of_a_quadratic_loss_is_the_step_times_the_hessian_along_the_sign() -> None:
    root, inputs = drawn(6, 6), drawn(5, 2, 3, seed=1)
    hessian = root @ root.T
    found = loss_curvature(lambda x: ((x.flatten(1) @ hessian) * x.flatten(1)).sum(1) / 2, inputs, step=0.1)
    way = (inputs.flatten(1) @ hessian).sign() / 6**0.5
    torch.testing.assert_close(found, 0.1 * (way @ hessian).norm(dim=1))


def test_a_plateau_and_a_slope_have_no_curvature() -> None:
    inputs = drawn(4, 3)
    assert loss_curvature(lambda x: 0 * x.sum(1), inputs).tolist() == [0.0] * 4
    assert loss_curvature(lambda x: x.sum(1), inputs).tolist() == [0.0] * 4


def test_a_points_curvature_is_its_own() -> None:
    def losses(x: Tensor) -> Tensor:
        return (x**4).sum(1)

    inputs = drawn(6, 3)
    torch.testing.assert_close(loss_curvature(losses, inputs)[2:4], loss_curvature(losses, inputs[2:4]))
