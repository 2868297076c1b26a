"""Products of large float32 matrices on a CPU, by oneDNN.

torch multiplies them with MKL, which leaves AVX-512 unused on processors of other makers than Intel. oneDNN, which
torch uses for convolutions and half precision, does not: 200 against 92 GFLOPS on one core of an AMD EPYC (Zen 5). The
precision is the same; sums are added up in another order.
"""

import torch
from torch import Tensor
from torch.nn.functional import linear

NARROWEST = 64  # rows or columns: oneDNN copies what it is given, which narrow matrices do not repay
LEAST = 1 << 22  # multiplications: as much as its longer way into a product costs


def product(left: Tensor, right: Tensor) -> Tensor:
    """The matrix product, whichever side is stored transposed.

    Args:
        left: [..., k].
        right: [k, n].

    Returns:
        [..., n].
    """
    rows = left if left.ndim == 2 else left.flatten(0, -2)
    if not _suits(rows, right):
        return left @ right
    found = _onednn(rows, right)
    return found if left.ndim == 2 else found.unflatten(0, left.shape[:-1])


def products(left: Tensor, right: Tensor) -> Tensor:
    """The matrix product of each pair.

    Args:
        left: [..., b, m, k], or [m, k] for all.
        right: [b, k, n].

    Returns:
        [..., b, m, n].
    """
    if not len(right) or not _suits(left[(0,) * (left.ndim - 2)], right[0]):
        return left @ right
    if left.ndim > 3:
        return torch.stack([products(one, right) for one in left])
    found = right.new_empty(len(right), left.shape[-2], right.shape[2])
    for index, one in enumerate(right):
        found[index] = _onednn(left if left.ndim == 2 else left[index], one)
    return found


def _suits(left: Tensor, right: Tensor) -> bool:
    m, k, n = *left.shape, right.shape[1]
    single = left.dtype == right.dtype == torch.float32 and left.device.type == right.device.type == "cpu"
    large = min(m, k, n) >= NARROWEST and m * k * n >= LEAST
    return single and large and torch.backends.mkldnn.is_available()


def _onednn(left: Tensor, right: Tensor) -> Tensor:
    """The three products of a linear layer W: x W', what it passes back, g W, and the gradient of its weights, g' x."""
    if right.T.is_contiguous():
        return linear(left.to_mkldnn(), right.T).to_dense()
    if left.T.is_contiguous():
        found: tuple[Tensor, Tensor] = torch.ops.aten.mkldnn_linear_backward_weights(
            left.T.to_mkldnn(), right.to_mkldnn(), right, False
        )
        return found[0]
    size = (len(left), right.shape[1])
    passed: Tensor = torch.ops.aten.mkldnn_linear_backward_input(size, left.to_mkldnn(), right).to_dense()
    return passed
