"""The data set as of a cycle, out of core: a manifest on disk is read once and met with what was decided.

Manifest and decisions are sorted by `point_id`, so the two are merged batch by batch: memory holds the decisions and
one batch, whatever the number of points, and the rows keep the order that `storage.dataset_digest` is defined on. (A
hash anti-join of DuckDB gives them in any order, and to sort 100 million rows again would cost more than the join.)
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage.dataset_digest import COLUMNS
from storage.errors import StorageError
from storage.points import ROWS


@dataclass(frozen=True)
class Decisions:
    """What the ledger says as of a cycle; a decision is of a point with the content that it had then.

    Args:
        removed: point_id, content.
        relabeled: point_id, content, label (int32).
    """

    removed: pa.Table
    relabeled: pa.Table


@dataclass(frozen=True)
class Part:
    """Some points of a manifest, in order.

    Attributes:
        kept: point_id, content, label, group of the points in the data set, with the labels in force.
        removed: point_id, content of those that are out of it.
        relabeled: point_id, given, label of those kept with another label than the given one.
    """

    kept: pa.RecordBatch
    removed: pa.RecordBatch
    relabeled: pa.RecordBatch


def parts(manifest: Path, decisions: Decisions) -> Iterator[Part]:
    """Split the points of a manifest on disk into those kept and those removed.

    Raises:
        StorageError: The file is missing or not a manifest.
    """
    removed, relabeled = _Decided(decisions.removed), _Decided(decisions.relabeled)
    try:
        with pq.ParquetFile(manifest, pre_buffer=False) as file:  # a buffer keeps whatever was read until the end
            # other cores digest and write the part before: with threads of its own, reading takes them a third more CPU
            for batch in file.iter_batches(ROWS, columns=list(COLUMNS), use_threads=False):
                yield _part(batch, removed, relabeled)
    except (OSError, pa.ArrowException) as error:
        raise StorageError(f"cannot read the manifest {manifest}: {error}") from error


def _part(batch: pa.RecordBatch, removed: "_Decided", relabeled: "_Decided") -> Part:
    gone, _ = removed.met(batch)
    kept = batch if gone is None else batch.filter(pc.invert(gone))
    out = batch.slice(0, 0) if gone is None else batch.filter(gone)
    changed, place = relabeled.met(kept)
    given, new = kept.column("label"), pa.nulls(kept.num_rows, pa.int32())
    if changed is not None:
        new = pc.if_else(changed, relabeled.column("label").take(place), new)
        kept = kept.set_column(COLUMNS.index("label"), "label", pc.coalesce(new, given))
    overridden = pa.record_batch({"point_id": kept.column("point_id"), "given": given, "label": new})
    return Part(kept, out.select(["point_id", "content"]), overridden.filter(pc.is_valid(new)))


class _Decided:
    """Decisions by id, of which those within a batch are looked up."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table.sort_by("point_id").combine_chunks()
        self._ids = self.column("point_id")

    def column(self, name: str) -> Any:
        """A column as one array."""
        column = self._table[name]
        return column.chunk(0) if column.num_chunks else pa.array([], column.type)

    def met(self, batch: pa.RecordBatch) -> tuple[Any, Any]:
        """Which rows of a batch are decided on, bool, and by which decision; None for no row."""
        if not len(self._ids) or not batch.num_rows:
            return None, None
        ids = batch.column("point_id")
        first = bisect_left(self._ids, ids[0].as_py(), key=_value)
        last = bisect_right(self._ids, ids[-1].as_py(), key=_value)
        if first == last:
            return None, None
        place = pc.add(pc.index_in(ids, value_set=self._ids.slice(first, last - first)), first)  # null: none
        content = self.column("content").take(place)
        return pc.fill_null(pc.equal(content, batch.column("content")), False), place


def _value(scalar: pa.Scalar) -> Any:
    return scalar.as_py()
