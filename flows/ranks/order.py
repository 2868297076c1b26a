"""The order in which a model in training sees its points."""

from __future__ import annotations

from collections.abc import Mapping

import torch


class Order:
    """The endless order in which a model sees its points: one permutation of the rows, an epoch, after another.

    Args:
        rows: Row indices of the points in training.
        batch_size: Points per step, over all ranks.
        seed: Of the permutations.
        dropped: Rows that leave after a step.

    Attributes:
        step: How many steps have been given out.
        ended: The epochs, from 1, whose last point was in the last step.
    """

    def __init__(
        self, rows: torch.Tensor, batch_size: int, seed: int, dropped: Mapping[int, torch.Tensor] | None = None
    ) -> None:
        self._rows, self._size = rows, batch_size
        self._generator = torch.Generator().manual_seed(seed)
        self._ahead = rows[:0]
        self._dropped = dropped or {}
        self._begun = self.step = 0
        self.ended = range(1, 1)

    def next(self) -> torch.Tensor:
        """The rows of the next step: `[batch_size]`."""
        first = self._begun + (not len(self._ahead))
        while len(self._ahead) < self._size:
            turn = self._rows[torch.randperm(len(self._rows), generator=self._generator)]
            self._ahead = torch.cat([self._ahead, turn])
            self._begun += 1
        batch, self._ahead = self._ahead[: self._size], self._ahead[self._size :]
        self.step += 1
        self.ended = range(first, self._begun + (not len(self._ahead)))
        if self.step in self._dropped:
            self.drop(self._dropped[self.step])
        return batch

    def drop(self, rows: torch.Tensor) -> None:
        """Leave rows out from the next step on, also of the epoch under way."""
        self._rows, self._ahead = (kept[~torch.isin(kept, rows)] for kept in (self._rows, self._ahead))

    def skip(self, steps: int) -> None:
        """Pass over the rows of the next steps."""
        for _ in range(steps):
            self.next()
