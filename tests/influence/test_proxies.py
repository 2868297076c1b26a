"""The proxies are their definitions, and larger means more memorized in every one of them."""

import torch
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from influence.proxies import held_out_retrain, loss_curvature


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


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
