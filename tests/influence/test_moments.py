import pytest
import torch
from torch import Tensor

from influence.curvature import moments
from influence.curvature.moments import ProductSum

LEFT, RIGHT = (
    torch.randn(100, size, generator=torch.Generator().manual_seed(size), dtype=torch.float64) for size in (3, 4)
)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("spill", [1, 20, 1000])
def test_the_sum_is_that_of_all_rows_however_they_come(
    dtype: torch.dtype, tolerance: float, spill: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moments, "SPILL", spill)
    total = ProductSum(3, 4)
    for rows in torch.arange(100).split(7):
        total.add(LEFT[rows].to(dtype), RIGHT[rows].to(dtype))
    assert total.settle().dtype == torch.float64
    torch.testing.assert_close(total.settle(), LEFT.T @ RIGHT, rtol=0, atol=tolerance)  # rounding in the dtype


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_weighted_rows_add_up_beside_products(dtype: torch.dtype, tolerance: float) -> None:
    total, weights, rows = ProductSum(3, 4), RIGHT[:, 0], LEFT[:, :, None] * RIGHT[:, None, :]
    total.add(LEFT.to(dtype), RIGHT.to(dtype))
    total.add_rows(weights.to(dtype), rows.to(dtype))
    truth = LEFT.T @ RIGHT + torch.einsum("n,nde->de", weights, rows)
    torch.testing.assert_close(total.settle(), truth, rtol=0, atol=tolerance)


@pytest.mark.parametrize("panel", [1, 3, 128])
@pytest.mark.parametrize("weights", [torch.ones(100), torch.full((100,), 0.3), torch.arange(100) / 50])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_second_moments_are_right_on_and_above_the_diagonal(
    dtype: torch.dtype, tolerance: float, weights: Tensor, panel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moments, "PANEL", panel)
    total, w = ProductSum(4, 4), weights.double()
    for rows in torch.arange(100).split(50):
        total.add_moment(RIGHT[rows].to(dtype), w[rows].to(dtype))
    truth = RIGHT.T @ (w[:, None] * RIGHT)
    torch.testing.assert_close(total.settle().triu(), truth.triu(), rtol=0, atol=tolerance)  # rounding in the dtype


def test_many_small_float32_terms_are_not_lost_beside_a_large_sum() -> None:
    # 2^24 + 1 = 2^24 in float32: one by one, the ones would all be lost.
    total, one = ProductSum(1, 1), torch.ones(1, 1)
    total.add(one * 4096, one * 4096)
    for _ in range(moments.SPILL):
        total.add(one, one)
    for _ in range(moments.SPILL):
        total.add(one, one)
    assert total.settle().item() > 4096**2 + moments.SPILL - 1
