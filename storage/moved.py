"""What changed in a data set between two cycles: the difference of their manifests.

One row per point that moved, sorted by `point_id`:

    point_id      int64 | string
    change        string           new, label (other label, same inputs), inputs (other inputs), group (nothing else),
                                   vanished
    label_before  int32, nullable
    label_after   int32, nullable
    group_before  string, nullable
    group_after   string, nullable
    decided       string, nullable  remove or relabel, where the ledger decided on the content that it lost or gained
    holds         bool, nullable    whether it gained it, so that the decision holds again

A point whose content changed is a new point, so a decision on what it was does not hold any more; one on a point that
vanished is closed. Both hold again where the content comes back. The group is not of the content, so that a decision
stands where it alone changed; but it is of the data set's sha256.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage.files import JSON, atomic_path, sha256_json
from storage.points import Manifest, PointId

Change: TypeAlias = Literal["new", "label", "inputs", "group", "vanished"]
CHANGES: tuple[Change, ...] = ("new", "label", "inputs", "group", "vanished")
Decision: TypeAlias = Literal["remove", "relabel"]
DECISIONS: tuple[Decision, ...] = ("remove", "relabel")


@dataclass(frozen=True)
class Moved:
    """The points that moved; the columns of `rows` are those of the module docstring."""

    rows: pa.Table

    def count(self, *changes: Change, decided: Decision | None = None, holds: bool = False) -> int:
        """Points that changed in one of these ways; where `decided` is given, those with that decision."""
        chosen = pc.is_in(self.rows["change"], value_set=pa.array(changes))
        if decided is not None:
            chosen = pc.and_(chosen, pc.equal(self.rows["decided"], decided))
            chosen = pc.and_(chosen, pc.equal(self.rows["holds"], holds))
        return int(pc.sum(chosen).as_py() or 0)

    @cached_property
    def detail(self) -> Mapping[str, JSON]:
        """For the ledger: counts, by class too (the label now, else the last), and a sha256 of the rows."""
        counts: dict[str, JSON] = {change: self.count(change) for change in CHANGES}
        decided: dict[str, JSON] = {
            f"{action}, {'holds again' if holds else 'holds no more'}": count
            for action in DECISIONS
            for holds in (False, True)
            if (count := self.count(*CHANGES, decided=action, holds=holds))
        }
        return counts | {"decided": decided, "by_class": self._by_class(), "sha256": self._sha256()}

    def _by_class(self) -> JSON:
        label = pc.coalesce(self.rows["label_after"], self.rows["label_before"])
        keyed = pa.table({"label": label, "change": self.rows["change"]})
        found: dict[str, dict[str, JSON]] = {}
        for row in keyed.group_by(["label", "change"]).aggregate([([], "count_all")]).to_pylist():
            found.setdefault(str(row["label"]), {})[row["change"]] = row["count_all"]
        return found

    def _sha256(self) -> str:
        return sha256_json([list(row) for row in zip(*(column.to_pylist() for column in self.rows.columns))])

    def write(self, path: Path) -> None:
        """Write the rows as Parquet, whole or not at all."""
        with atomic_path(path) as temporary:
            pq.write_table(self.rows, temporary)


def compare(
    before: Manifest, after: Manifest, removed: Mapping[PointId, str], relabeled: Mapping[PointId, str]
) -> Moved:
    """Tell two manifests of a data set apart.

    Args:
        before: Of the earlier cycle.
        after: As the data are now, ids of the same type.
        removed: Content that each point was removed with, whether the data set still has it or not.
        relabeled: Content that each point was relabelled with.
    """
    columns = ["point_id", "content", "inputs", "label", "group"]
    both = before.table.select(columns).join(
        after.table.select(columns), "point_id", join_type="full outer", left_suffix="_before", right_suffix="_after"
    )
    same = pc.and_(_equal(both, "content"), _equal(both, "group"))
    both = both.filter(pc.invert(same)).sort_by("point_id")
    rows = both.select(["point_id"]).append_column("change", _change(both))
    for name in ("label_before", "label_after", "group_before", "group_after"):
        rows = rows.append_column(name, both[name])
    decided = _decided(both, removed, relabeled)
    return Moved(rows.append_column("decided", decided["decided"]).append_column("holds", decided["holds"]))


def _equal(both: pa.Table, name: str) -> pa.ChunkedArray:
    """Where a column is the same before and after, null on both sides included."""
    before, after = both[f"{name}_before"], both[f"{name}_after"]
    return pc.coalesce(pc.equal(before, after), pc.and_(pc.is_null(before), pc.is_null(after)))


def _change(both: pa.Table) -> pa.ChunkedArray:
    changed = pc.if_else(_equal(both, "inputs"), "label", "inputs")
    changed = pc.if_else(_equal(both, "content"), "group", changed)
    gone = pc.if_else(pc.is_null(both["content_after"]), "vanished", changed)
    return pc.if_else(pc.is_null(both["content_before"]), "new", gone)


def _decided(both: pa.Table, removed: Mapping[PointId, str], relabeled: Mapping[PointId, str]) -> pa.Table:
    found: list[tuple[str | None, bool | None]] = []
    for point, lost, gained in zip(
        *(both[name].to_pylist() for name in ("point_id", "content_before", "content_after"))
    ):
        action = "remove" if point in removed else "relabel"
        was = removed.get(point, relabeled.get(point))
        touched = was is not None and lost != gained and was in (lost, gained)
        found.append((action, was == gained) if touched else (None, None))
    return pa.table(
        {"decided": pa.array([a for a, _ in found], pa.string()), "holds": pa.array([h for _, h in found], pa.bool_())}
    )
