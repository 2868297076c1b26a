"""Sums of products over many batches: float64 in the end, without paying for it in every batch.

Adding a float32 product to a float64 matrix of order d costs as much as the product of some 120 rows. So rows enter a
float32 matrix in place, which is added to the float64 one after `SPILL` rows.
"""

import torch
from torch import Tensor

from influence.matmul import product

SPILL = 2048  # rows: their float32 sum is good to 1e-6
PANEL = 256  # most columns of a symmetric sum that are computed at a time: what lies below is what is above


class ProductSum:
    """The sum of left' right over batches of rows.

    Args:
        rows: d.
        columns: e.
        device: where the batches are; None is the CPU.

    Attributes:
        value: after `settle`, [d, e], float64.
    """

    def __init__(self, rows: int, columns: int, device: torch.device | None = None) -> None:
        self.value = torch.zeros(rows, columns, dtype=torch.float64, device=device)
        self._recent: Tensor | None = None
        self._held = 0

    def add(self, left: Tensor, right: Tensor) -> None:
        """Add left' right, for left [n, d] and right [n, e]."""
        self._target(left).add_(product(left.T, right))
        self._count(len(left))

    def add_moment(self, rows: Tensor, weights: Tensor) -> None:
        """Add sum_n w_n x_n x_n' for rows x [n, d] and weights [n], on and above the diagonal only."""
        even = bool((weights == weights[0]).all())
        right = rows.T.contiguous()  # as products of many rows want it
        left, scale = (right, float(weights[0])) if even else (right * weights, 1.0)
        target = self._target(rows)
        width = -(-len(right) // -(-len(right) // PANEL))  # alike: a narrow last one would cost as much as a whole
        for start in range(0, len(right), width):
            columns = slice(start, start + width)
            part = product(left[: columns.stop], right[columns].T)
            target[: columns.stop, columns].add_(part, alpha=scale)
        self._count(len(rows))

    def add_rows(self, weights: Tensor, rows: Tensor) -> None:
        """Add sum_n w_n R_n, for weights [n] and rows R [n, d, e]."""
        self._target(rows).view(-1).addmv_(rows.flatten(1).T, weights)
        self._count(len(rows))

    def add_columns(self, places: Tensor, columns: Tensor) -> None:
        """Add columns [d, n] at some of the e places [n], which may repeat; the cost does not grow with e."""
        self.value.index_add_(1, places, columns.double())

    def settle(self) -> Tensor:
        """The whole sum; frees what only adding needs."""
        if self._recent is not None:
            self._spill()
            self._recent = None
        return self.value

    def _target(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float64:
            return self.value
        if self._recent is None:
            self._recent = torch.zeros_like(self.value, dtype=x.dtype)
        return self._recent

    def _count(self, rows: int) -> None:
        self._held += rows
        if self._recent is not None and self._held >= SPILL:
            self._spill()

    def _spill(self) -> None:
        assert self._recent is not None
        self.value += self._recent
        self._recent.zero_()
        self._held = 0
