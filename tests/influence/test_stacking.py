import pytest
import torch
from torch import Tensor

from influence.stacking import SHAPE, Stack, fit_stack

N, C = 4000, 4


def planted(transition: Tensor, n: int = N, softness: float = 1.0) -> tuple[Tensor, Tensor]:
    """Calibrated log-probabilities of the true label, taken to a power, and given labels drawn through a transition."""
    g = torch.Generator().manual_seed(5)
    log_probs = (4 * torch.randn(n, C, generator=g, dtype=torch.float64)).log_softmax(1)
    truth = torch.multinomial(log_probs.exp(), 1, generator=g)[:, 0]
    given = torch.multinomial(transition[truth], 1, generator=g)[:, 0]
    return (softness * log_probs).log_softmax(1)[None], given


def uniform(rate: float) -> Tensor:
    return torch.full((C, C), rate / (C - 1)).fill_diagonal_(1 - rate).double()


def next_class(rate: float) -> Tensor:
    return torch.eye(C).mul(1 - rate).add(rate * torch.eye(C).roll(1, 1)).double()


def fit(transition: Tensor, softness: float = 1.0) -> Stack:
    return fit_stack(*planted(transition, softness=softness), evidence=3.0)


@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_flips_without_preference_share_one_rate(rate: float) -> None:
    found = fit(uniform(rate)).transition
    off = found[~torch.eye(C, dtype=torch.bool)]
    assert off.std() < 0.01 * off.mean()  # free rates would scatter by their Poisson error, 8 to 15 %
    assert off.sum().item() / C == pytest.approx(rate, abs=0.02)  # 3 standard errors: sqrt(.05 .95 / 1,000 sure points)


@pytest.mark.parametrize("rate", [0.1, 0.3])
def test_flips_that_prefer_a_class_get_rates_of_their_own(rate: float) -> None:
    torch.testing.assert_close(fit(next_class(rate)).transition, next_class(rate), atol=0.06, rtol=0)  # 4 of 1,000's


def test_soft_signals_are_sharpened() -> None:
    assert fit(uniform(0.1), softness=0.5).weights.item() == pytest.approx(2, rel=0.1)  # about 4 standard errors


def test_the_fit_is_a_mode_of_the_posterior_in_weights_and_offsets() -> None:
    signals, given = planted(uniform(0.2))
    found = fit_stack(signals, given, evidence=3.0)
    weights, offsets = found.weights.requires_grad_(), found.offsets.requires_grad_()
    belief = (torch.einsum("s,snc->nc", weights, signals) + offsets).log_softmax(1)
    likelihood = (belief + found.transition.log()[:, given].T).logsumexp(1).sum()
    prior = (SHAPE - 1) * (weights.log() - weights).sum() - offsets.square().sum() / 2
    gradients = torch.autograd.grad(likelihood + prior, (weights, offsets))
    assert torch.cat(gradients).abs().max() < 1e-3 * N  # EM stops at 1e-7 nats per label and round


def test_log_probs_are_a_distribution_over_true_labels() -> None:
    signals, given = planted(next_class(0.2))
    found = fit_stack(signals, given, evidence=3.0)
    probs = found.log_probs(signals, given).exp()
    torch.testing.assert_close(probs.sum(1), torch.ones(N, dtype=torch.float64))
    assert (probs.argmax(1) != given).double().mean().item() == pytest.approx(0.2, abs=0.04)


def test_a_class_that_is_never_given_is_fitted_all_the_same() -> None:
    signals, given = planted(uniform(0.1))
    found = fit_stack(signals, given.clamp(max=C - 2), evidence=3.0)
    assert torch.isfinite(found.offsets).all()
    torch.testing.assert_close(found.transition.sum(1), torch.ones(C, dtype=torch.float64))
    assert (found.transition > 0).all()


def test_noise_that_gains_too_little_is_not_claimed() -> None:
    signals, given = planted(uniform(0.1))
    noisy, clean = (fit_stack(signals, given, evidence=nats) for nats in (3.0, torch.inf))
    assert noisy.log_likelihood(signals, given) > clean.log_likelihood(signals, given) + 3
    assert (clean.transition.diagonal() > 1 - 1e-6).all()
    assert clean.weights.item() < noisy.weights.item()  # softness takes the part of noise
