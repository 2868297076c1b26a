"""How much may go, and who of an ordered list does: the one place where budgets are enforced.

Candidates come in the order in which they would go. Every one lies in a cell: its given label and its group. Each is
taken if its class and its group have room, and the total has; a removal and a relabeling count the same:

    per_class, per_group   floor(share * n) - spent, n and spent (removed or relabelled before) of the label or group
    minimum_per_class      what is in training under the label, less that
    limit                  the least of what cycle, cumulative and minimum_kept leave

A label or group of null has no cap. What is closed stays closed, so of every cell those that go are the first ones:
the outcome is one rank per cell and one for the total, however many candidates there are.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from storage.errors import InvalidBudget
from storage.points import PointId

Integers = NDArray[np.int64]
NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Budgets:
    """How much may go.

    Args:
        cycle: Share in (0, 1] of the points now in train.
        cumulative: Share in (0, 1] of all points, those removed or relabelled earlier included, which count as spent.
        per_class: The same within each given label; points without a label have no class cap.
        minimum_kept: Points that stay in train whatever the shares say.
        protected: Points that are never touched.
        cooldown: Points not proposed again yet.
        per_group: The same as per_class within each group; points without a group have no group cap.
        minimum_per_class: Points of each given label that stay.
        protected_groups: Groups whose points are never touched.
        relabeled: The given labels of points relabelled earlier, which scores know by their newer label.
    """

    cycle: float
    cumulative: float
    per_class: float
    minimum_kept: int = 1
    protected: frozenset[PointId] = frozenset()
    cooldown: frozenset[PointId] = frozenset()
    per_group: float = 1.0
    minimum_per_class: int = 0
    protected_groups: frozenset[str] = frozenset()
    relabeled: Mapping[PointId, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a share outside (0, 1] and a minimum that is too small."""
        for name in ("cycle", "cumulative", "per_class", "per_group"):
            share = getattr(self, name)
            if not 0 < share <= 1:
                raise InvalidBudget(f"budget {name} = {share}; give a share above 0 and at most 1, e.g. 0.15")
        if self.minimum_kept < 1:
            raise InvalidBudget(f"budget minimum_kept = {self.minimum_kept}; keep at least 1 point")
        if self.minimum_per_class < 0:
            raise InvalidBudget(f"budget minimum_per_class = {self.minimum_per_class}; give 0 or more points")


@dataclass(frozen=True)
class Cells:
    """The points of each label and group, one entry per cell.

    Args:
        label: Given label, or null.
        group: Group, or null.
        points: All of them.
        in_train: Those in training.
        spent: Those removed or relabelled before.
        relabeled: Those of `spent` that are in training, under another label.
    """

    label: pa.Array
    group: pa.Array
    points: Integers
    in_train: Integers
    spent: Integers
    relabeled: Integers


@dataclass(frozen=True)
class Outcome:
    """Who goes: the candidates of a cell whose rank is at most `through` of the cell and at most `last`.

    Args:
        through: Of each cell, the last rank that its class and group admit, [cells].
        refused: Name of the budget that refuses what comes after it; "" where none does.
        last: The last rank that the total admits.
        binding: Name of the budget that refuses what comes after it.
        limit: The most that may go.
    """

    through: Integers
    refused: tuple[str, ...]
    last: int
    binding: str
    limit: int


TOTALS = ("cycle", "cumulative", "minimum_kept")
WITHIN = ("per_class", "per_group", "minimum_per_class")


def spend(cells: Cells, budgets: Budgets, order: Iterable[Integers]) -> Outcome:
    """Decide who of the candidates goes.

    Args:
        cells: Of all points, candidates or not.
        budgets: How much may go.
        order: The cell of each candidate, in batches, in the order of their ranks, which count from 1.
    """
    limits = _limits(cells, budgets)
    binding = min(limits, key=lambda name: limits[name])
    caps = _caps(cells, budgets)
    gate = _Gate(caps, limits[binding], len(cells.points))
    for batch in order:
        gate.admit(batch)
    refused = tuple("" if cap < 0 else caps[cap].name for cap in gate.refused)
    return Outcome(gate.through, refused, gate.last, binding, limits[binding])


def _limits(cells: Cells, budgets: Budgets) -> dict[str, int]:
    in_train = int(cells.in_train.sum())
    return {
        "cycle": _share(budgets.cycle, in_train),
        "cumulative": max(0, _share(budgets.cumulative, int(cells.points.sum())) - int(cells.spent.sum())),
        "minimum_kept": max(0, in_train - budgets.minimum_kept),
    }


def _share(share: float, count: int) -> int:
    """floor(share * count), where 0.29 * 100 is 29 although its float product is 28.999…."""
    return math.floor(share * count + 1e-9)


@dataclass(frozen=True)
class _Cap:
    """So much room in each of some buckets; `bucket` of each cell is -1 where there is none."""

    name: str
    bucket: Integers
    room: Integers


def _caps(cells: Cells, budgets: Budgets) -> tuple[_Cap, ...]:
    of_class, classes = _buckets(cells.label)
    of_group, groups = _buckets(cells.group)

    def total(values: Integers, bucket: Integers, count: int) -> Integers:
        known = bucket >= 0
        return np.bincount(bucket[known], values[known], count).astype(np.int64)

    def shares(share: float, bucket: Integers, count: int) -> Integers:
        sizes, spent = total(cells.points, bucket, count), total(cells.spent, bucket, count)
        room = [_share(share, int(size)) - int(gone) for size, gone in zip(sizes, spent, strict=True)]
        return np.maximum(0, np.array(room, dtype=np.int64))

    present = total(cells.in_train - cells.relabeled, of_class, classes)
    return (
        _Cap("per_class", of_class, shares(budgets.per_class, of_class, classes)),
        _Cap("per_group", of_group, shares(budgets.per_group, of_group, groups)),
        _Cap("minimum_per_class", of_class, np.maximum(0, present - budgets.minimum_per_class)),
    )


def _buckets(values: pa.Array) -> tuple[Integers, int]:
    """A number from 0 for each distinct value, -1 for null, and how many there are."""
    encoded = values.dictionary_encode()
    return encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64), len(encoded.dictionary)


class _Gate:
    """Lets candidates through in their order, and closes a class or group when it is full."""

    def __init__(self, caps: Sequence[_Cap], limit: int, cells: int) -> None:
        self._caps, self._limit = caps, limit
        self._room = [cap.room.copy() for cap in caps]
        self._seen, self._taken = 0, 0
        self.last = 0 if limit == 0 else NEVER
        self.through = np.full(cells, NEVER, np.int64)
        self.refused = np.full(cells, -1, np.int64)

    def admit(self, batch: Integers) -> None:
        """Take the next candidates, given by their cells."""
        while len(batch):
            open_rows = self.through[batch] == NEVER
            full = [found for cap in range(len(self._caps)) if (found := self._overflow(cap, batch, open_rows))]
            end, cap, bucket = min(full, default=(len(batch), -1, -1))
            self._take(batch[:end], open_rows[:end])
            if cap >= 0:
                closing = (self._caps[cap].bucket == bucket) & (self.through == NEVER)
                self.through[closing], self.refused[closing] = self._seen, cap
            batch = batch[end:]

    def _overflow(self, cap: int, batch: Integers, open_rows: NDArray[np.bool_]) -> tuple[int, int, int] | None:
        """The first open row for which its bucket has no room, with cap and bucket."""
        buckets = self._caps[cap].bucket[batch]
        places = np.flatnonzero(open_rows & (buckets >= 0))
        room, wanted = self._room[cap], buckets[places]
        over = np.flatnonzero(np.bincount(wanted, minlength=len(room)) > room)
        found = [(int(places[np.flatnonzero(wanted == bucket)[room[bucket]]]), cap, int(bucket)) for bucket in over]
        return min(found, default=None)

    def _take(self, batch: Integers, open_rows: NDArray[np.bool_]) -> None:
        rows = np.flatnonzero(open_rows)
        for cap, room in zip(self._caps, self._room, strict=True):
            buckets = cap.bucket[batch[rows]]
            room -= np.bincount(buckets[buckets >= 0], minlength=len(room))
        if self.last == NEVER and self._taken + len(rows) >= self._limit:
            self.last = self._seen + int(rows[self._limit - self._taken - 1]) + 1
        self._taken += len(rows)
        self._seen += len(batch)
