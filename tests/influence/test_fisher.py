"""Roots of the Gauss-Newton matrix of the cross-entropy at the logits."""

import warnings

import pytest
import torch
from torch import Tensor

from influence import Fisher, InfluenceError
from influence.fisher import margin_residuals, residuals, sampled, uniforms

B, C = 6, 5
GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(B, C, generator=GENERATOR, dtype=torch.float64)
P = LOGITS.softmax(1)
LABELS = torch.arange(B) % C
KEYS = torch.tensor([0, 1, -7, 2**62, -(2**63), 2**63 - 1])
TRUTH = torch.diag_embed(P) - P[:, :, None] * P[:, None]  # [B, C, C]


def outer(roots: Tensor) -> Tensor:
    return torch.einsum("rbc,rbd->bcd", roots, roots)


def test_exact_roots_add_up_to_the_hessian_of_the_loss_in_the_logits() -> None:
    roots = Fisher().roots(P, LABELS, KEYS)
    assert roots.shape == (C, B, C)
    torch.testing.assert_close(outer(roots), TRUTH, rtol=0, atol=1e-15)


def test_a_sure_prediction_has_finite_roots_of_zero() -> None:
    sure = torch.eye(C, dtype=torch.float64)[: B - 1]
    assert Fisher().roots(sure, LABELS[:-1], KEYS[:-1]).eq(0).all()
    assert Fisher("sampled", 3).roots(sure, LABELS[:-1], KEYS[:-1]).eq(0).all()


def test_sampled_roots_are_unbiased() -> None:
    draws = 100_000
    labels = Fisher("sampled", draws).roots(P, LABELS, KEYS).add(P / draws**0.5).mul(draws**0.5)  # [R, B, C] one-hot
    torch.testing.assert_close(labels.sum(2), torch.ones(draws, B, dtype=torch.float64))
    frequency = labels.mean(0)
    assert ((frequency - P).abs() <= 4 * (P * (1 - P) / draws).sqrt()).all()  # binomial; 30 of them at 4 sigma
    found = outer(Fisher("sampled", draws).roots(P, LABELS, KEYS))
    spread = (labels - P)[..., None] * (labels - P)[:, :, None]  # [R, B, C, C]
    assert ((found - TRUTH).abs() <= 4.5 * spread.std(0) / draws**0.5).all()  # 150 of them


def test_a_class_of_probability_zero_is_never_drawn() -> None:
    p = torch.tensor([[0.0, 0.3, 0.0, 0.7, 0.0]]).expand(1000, 5)
    roots = Fisher("sampled", 5).roots(p, LABELS, torch.arange(1000))
    assert roots[:, :, [0, 2, 4]].eq(0).all()


def test_a_label_is_the_first_whose_cumulative_probability_exceeds_the_number() -> None:
    p = torch.tensor([[0.0, 0.5, 0.25, 0.25, 0.0]])
    numbers = torch.tensor([0.0, 0.4, 0.5, 0.74, 0.75, 1 - 2**-53], dtype=torch.float64)
    assert sampled(p, numbers[:, None])[:, 0].tolist() == [1, 1, 2, 2, 3, 3]
    many = torch.full((1, 300_000), 1 / 300_000)
    assert abs(int(sampled(many, torch.tensor([[0.7]], dtype=torch.float64))) - 210_000) <= 1


def test_draws_depend_on_the_key_and_the_seed_alone() -> None:
    fisher = Fisher("sampled", 3, seed=5)
    whole = fisher.roots(P, LABELS, KEYS)
    for rows in (torch.tensor([5, 2, 0]), torch.tensor([3])):
        assert fisher.roots(P[rows], LABELS[rows], KEYS[rows]).equal(whole[:, rows])
    assert not Fisher("sampled", 3, seed=6).roots(P, LABELS, KEYS).equal(whole)
    assert not fisher.roots(P, LABELS, KEYS + 1).equal(whole)
    assert fisher.roots(P, (LABELS + 1) % C, KEYS).equal(whole)  # nothing of the given labels
    assert not whole[0].equal(whole[1])


@pytest.mark.parametrize(
    "sample",
    [
        uniforms(torch.arange(20_000), 1, 0)[0],  # neighbouring keys
        uniforms(torch.arange(-10_000, 10_000) * 2**40, 1, 3)[0],  # keys that differ in high bits only
        uniforms(torch.tensor([12345]), 20_000, 0)[:, 0],  # draws of one point
        torch.stack([uniforms(torch.tensor([7]), 1, seed)[0, 0] for seed in range(2_000)]),  # seeds
    ],
)
def test_numbers_are_uniform_on_the_unit_interval(sample: Tensor) -> None:
    assert sample.min() >= 0
    assert sample.max() < 1
    n = len(sample)
    at = sample.sort().values
    steps = torch.arange(n + 1) / n
    distance = max(float((steps[1:] - at).max()), float((at - steps[:-1]).max()))
    assert distance < 1.95 / n**0.5  # Kolmogorov: exceeded with probability .001
    neighbours = (sample[1:] - 0.5) * (sample[:-1] - 0.5)
    assert abs(float(neighbours.mean())) < 4 / 12 / n**0.5  # 4 sigma of uncorrelated ones


def test_no_key_or_seed_overflows() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in (0, 7, 10**6, -3, 2**63 - 1):
            found = uniforms(KEYS, 4, seed)
            assert found.shape == (4, B)
            assert len(found.unique()) == 4 * B


def test_the_empirical_root_is_the_gradient_of_the_loss_in_the_logits() -> None:
    z = LOGITS.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(z, LABELS, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, z)
    torch.testing.assert_close(residuals(P, LABELS), gradient, rtol=0, atol=1e-15)
    torch.testing.assert_close(Fisher("empirical").roots(P, LABELS, KEYS), gradient[None], rtol=0, atol=1e-15)


def test_the_margin_residual_times_the_doubt_is_the_residual() -> None:
    z = LOGITS.clone().requires_grad_()
    others = z.masked_fill(torch.nn.functional.one_hot(LABELS, C).bool(), -torch.inf)
    margin = z.gather(1, LABELS[:, None])[:, 0] - others.logsumexp(1)
    (gradient,) = torch.autograd.grad(-margin.sum(), z)
    found = margin_residuals(LOGITS, LABELS)
    torch.testing.assert_close(found, gradient, rtol=0, atol=1e-15)
    doubt = 1 - P.gather(1, LABELS[:, None])
    torch.testing.assert_close(doubt * found, residuals(P, LABELS), rtol=0, atol=1e-15)


def test_large_vocabularies_are_drawn_from_without_a_square_matrix() -> None:
    p = torch.full((2, 300_000), 1 / 300_000)  # its square would be 360 GB
    roots = Fisher("sampled", 2).roots(p, LABELS[:2], KEYS[:2])
    assert roots.shape == (2, 2, 300_000)
    torch.testing.assert_close(roots.max(2).values, torch.full((2, 2), 0.5**0.5), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("kind", "draws", "message"),
    [("guess", 1, "use one of exact, sampled, empirical"), ("sampled", 0, "0 draws"), ("exact", 2, "only with kind")],
)
def test_what_makes_no_sense_is_refused(kind: str, draws: int, message: str) -> None:
    with pytest.raises(InfluenceError, match=message):
        Fisher(kind, draws)  # type: ignore[arg-type]
