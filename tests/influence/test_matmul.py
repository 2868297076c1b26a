"""Products by oneDNN are the products."""

import pytest
import torch
from torch import Tensor

from influence.matmul import LEAST, NARROWEST, product, products

ROUNDING = 1e-5  # of float32 sums over 200 terms of size 1, in units of their largest


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def stored_transposed(x: Tensor) -> Tensor:
    return x.mT.contiguous().mT


def error(found: Tensor, left: Tensor, right: Tensor) -> float:
    exact = left.double() @ right.double()
    assert found.shape == exact.shape
    return float((found - exact).abs().max() / exact.abs().max())


@pytest.mark.parametrize("left_transposed", [False, True])
@pytest.mark.parametrize("right_transposed", [False, True])
def test_a_large_product_is_right_whichever_side_is_stored_transposed(
    *, left_transposed: bool, right_transposed: bool
) -> None:
    left, right = normal(170, 200), normal(200, 150, seed=1)
    assert left.numel() * right.shape[1] > LEAST
    found = product(
        stored_transposed(left) if left_transposed else left, stored_transposed(right) if right_transposed else right
    )
    assert error(found, left, right) < ROUNDING
    assert found.is_contiguous()
    assert not found.is_mkldnn


@pytest.mark.parametrize("shape", [(170, 200, 1), (NARROWEST - 1, 2000, 100), (0, 200, 150), (3, 4, 5)])
def test_a_small_or_narrow_product_is_that_of_torch(shape: tuple[int, int, int]) -> None:
    m, k, n = shape
    left, right = normal(m, k), normal(k, n, seed=1)
    assert product(left, right).equal(left @ right)


def test_a_product_in_double_precision_is_that_of_torch() -> None:
    left, right = normal(170, 200).double(), normal(200, 150, seed=1).double()
    assert product(left, right).equal(left @ right)


def test_leading_dimensions_are_kept() -> None:
    left, right = normal(2, 85, 200), normal(200, 150, seed=1)
    assert error(product(left, right), left, right) < ROUNDING


def test_a_slice_of_rows_and_columns_is_multiplied_as_it_is() -> None:
    left, right = normal(200, 300)[:, 50:250], normal(300, 400, seed=1)[20:220, 30:230]
    assert error(product(left, right), left, right) < ROUNDING


@pytest.mark.parametrize("left", [(3, 170, 200), (170, 200), (2, 3, 170, 200)])
def test_products_are_those_of_each_pair(left: tuple[int, ...]) -> None:
    one, other = normal(*left), normal(3, 200, 150, seed=1)
    assert error(products(one, other), one, other) < ROUNDING


def test_products_of_no_pair_are_none() -> None:
    assert products(normal(0, 170, 200), normal(0, 200, 150)).shape == (0, 170, 150)
