import pytest
import torch
from torch.nn.functional import cross_entropy

from influence import InfluenceError, cheap_signals, grand, memorization_labels
from tests.influence.cases import conv_net, images, loss_factors, per_point_gradients


def test_labels_need_the_mean_beyond_z_standard_errors() -> None:
    influence, se = torch.tensor([3.0, 0.5, -0.5, -3.0]), torch.ones(4)
    assert memorization_labels(influence, se) == ["generalize", "neutral", "neutral", "memorize"]
    assert memorization_labels(influence, se, z=4) == ["neutral"] * 4


def test_z_of_zero_is_the_bare_sign() -> None:
    found = memorization_labels(torch.tensor([0.1, 0.0, -0.1]), torch.ones(3), z=0)
    assert found == ["generalize", "neutral", "memorize"]


def test_a_negative_z_is_refused() -> None:
    with pytest.raises(InfluenceError, match="at least 0"):
        memorization_labels(torch.ones(1), torch.ones(1), z=-1)


def test_cheap_signals_are_their_definitions() -> None:
    logits = torch.randn(20, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.arange(20) % 4
    found = cheap_signals(logits, labels)
    torch.testing.assert_close(found.loss, cross_entropy(logits, labels, reduction="none"))
    for b, y in enumerate(labels.tolist()):
        others = [logits[b, c] for c in range(4) if c != y]
        assert found.margin[b].item() == pytest.approx((logits[b, y] - torch.stack(others).logsumexp(0)).item())
        assert found.el2n[b].item() == pytest.approx((logits[b].softmax(0) - torch.eye(4)[y]).norm().item())
        assert found.predicted[b] == logits[b].argmax()
        p = logits[b].softmax(0)
        assert found.confidence[b].item() == pytest.approx(p[y].item())
        assert found.entropy[b].item() == pytest.approx(torch.distributions.Categorical(p).entropy().item())


def test_loss_and_margin_of_a_hopeless_point_stay_exact() -> None:
    # -log p_y of a probability that underflows: softplus of the margin does not pass through p.
    found = cheap_signals(torch.tensor([[0.0, 200.0]]), torch.tensor([0]))
    assert found.loss.item() == 200.0
    assert found.margin.item() == -200.0
    assert found.entropy.item() == 0.0


def test_grand_is_the_norm_of_the_loss_gradient_on_all_blocks() -> None:
    model, batch = conv_net(), images(6)
    full = torch.cat([gradient.flatten(1) for gradient in per_point_gradients(model, batch).values()], 1)
    torch.testing.assert_close(grand(loss_factors(model, batch)), full.norm(dim=1), rtol=1e-12, atol=0)
