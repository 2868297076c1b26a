"""The order in which a model in training sees its points."""

from __future__ import annotations

import torch


class Order:
    """The endless order in which a model sees its points: one permutation of the rows after another.

    Args:
        rows: Row indices of the points in training.
        batch_size: Points per step, over all ranks.
        seed: Of the permutations.
    """

    def __init__(self, rows: torch.Tensor, batch_size: int, seed: int) -> None:
        self._rows, self._size = rows, batch_size
        self._generator = torch.Generator().manual_seed(seed)
        self._ahead = rows[:0]

    def next(self) -> torch.Tensor:
        """The rows of the next step: `[batch_size]`."""
        while len(self._ahead) < self._size:
            turn = self._rows[torch.randperm(len(self._rows), generator=self._generator)]
            self._ahead = torch.cat([self._ahead, turn])
        batch, self._ahead = self._ahead[: self._size], self._ahead[self._size :]
        return batch

    def skip(self, steps: int) -> None:
        """Pass over the rows of the next steps."""
        for _ in range(steps):
            self.next()
