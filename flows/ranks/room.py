"""The budgets of [pruning] as they bound what a training drops: storage/budgets.py decides, as for a proposal."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from flows.protection import protected_ids
from flows.ranks.points import Points
from flows.sections.curation import PruningConfig
from storage.budgets import Budgets, Cells, spend


class Room:
    """What the budgets leave; points that were removed, relabelled or dropped before have been spent.

    Args:
        pruning: The budgets, and whom they protect.
        points: The train set as the training sees it.

    Attributes:
        free: Points that nothing protects, `[n]`, bool.
    """

    def __init__(self, pruning: PruningConfig, points: Points) -> None:
        table = points.manifest.table
        protected, groups = protected_ids(pruning, points.manifest.id_kind), frozenset(pruning.protected_groups)
        named = zip(points.ids, table["group"].to_pylist())
        self.free = torch.tensor([point not in protected and group not in groups for point, group in named])
        cells = list(zip(table["label"].to_pylist(), table["group"].to_pylist()))
        self._names = list(dict.fromkeys(cells))
        number = {name: cell for cell, name in enumerate(self._names)}
        self._cell = np.array([number[name] for name in cells], dtype=np.int64)
        given = torch.tensor(table["label"].to_pylist(), dtype=torch.int64)
        self._relabeled = points.labels != given
        self._budgets = Budgets(
            cycle=1.0,  # the cap is taken off what is admitted
            cumulative=pruning.cumulative_budget,
            per_class=pruning.class_budget,
            minimum_kept=pruning.minimum_kept,
            per_group=pruning.group_budget,
            minimum_per_class=pruning.class_minimum_kept,
        )

    def admit(self, rows: Tensor, active: Tensor) -> Tensor:
        """Those of these points, in their order, for which there is room; `active` are in training, `[n]`."""
        mine = self._cell[rows.numpy()]
        cells = Cells(
            label=pa.array([label for label, _ in self._names], pa.int32()),
            group=pa.array([group for _, group in self._names], pa.string()),
            points=self._count(torch.ones_like(active)),
            in_train=self._count(active),
            spent=self._count(~active | self._relabeled),
            relabeled=self._count(active & self._relabeled),
        )
        outcome = spend(cells, self._budgets, [mine])
        rank = np.arange(1, len(mine) + 1)
        return rows[torch.from_numpy((rank <= outcome.through[mine]) & (rank <= outcome.last))]

    def _count(self, chosen: Tensor) -> NDArray[np.int64]:
        return np.bincount(self._cell[chosen.numpy()], minlength=len(self._names)).astype(np.int64)
