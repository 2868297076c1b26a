"""Exact leave-one-out by refitting, against closed forms."""

import pytest
import torch
from torch import nn

from influence import InfluenceError
from influence.convex import minimise

RIDGE = 0.05


def regression() -> tuple[nn.Linear, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    y = torch.randn(40, generator=generator, dtype=torch.float64)
    return nn.Linear(6, 1, bias=False).double(), x, y


def ridge_solution(x: torch.Tensor, y: torch.Tensor, n: int) -> torch.Tensor:
    return torch.linalg.solve(x.T @ x / n + RIDGE * torch.eye(6, dtype=torch.float64), x.T @ y / n)


def test_ridge_regression_with_and_without_a_point_is_its_closed_form_with_1_over_n_kept() -> None:
    model, x, y = regression()

    def losses() -> torch.Tensor:
        return (model(x)[:, 0] - y).square() / 2

    minimise(model, losses, RIDGE)
    # the gradient is below 1e-8 and the least curvature is RIDGE, so the parameters are within 1e-8 sqrt(6) / RIDGE
    torch.testing.assert_close(model.weight[0].detach(), ridge_solution(x, y, 40), atol=5e-7, rtol=0)
    minimise(model, losses, RIDGE, left_out=3)
    rest = torch.arange(40) != 3
    torch.testing.assert_close(model.weight[0].detach(), ridge_solution(x[rest], y[rest], 40), atol=5e-7, rtol=0)


def test_a_loss_without_a_minimum_is_refused() -> None:
    model, x, _ = regression()
    with pytest.raises(InfluenceError, match="not convex, or the ridge is too small"):
        minimise(model, lambda: model(x)[:, 0], 0.0)
