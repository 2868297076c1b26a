"""The identity of a data set, computed from its rows as they stream past.

    sha256 of canonical JSON {rows, id_kind, point_id, content, label, group}

where each column stands for two sha256 over its values in order: one of integers (8 bytes each, little-endian), one of
UTF-8 bytes. A number is its integer, and the smallest if it is null; a text is its length in bytes, -1 if it is null,
and its bytes. So the digest depends neither on how rows are cut into batches nor on what wrote them, and costs no more
than sha256 itself. `inputs` does not enter: `content` already covers the sample.
"""

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage.files import JSON, canonical_json, sha256_json

COLUMNS = ("point_id", "content", "label", "group")
NULL_INTEGER = -(2**63)


class DatasetDigest:
    """Takes the rows of a data set in the order of their ids; `rows` counts them."""

    def __init__(self) -> None:
        self.rows = 0
        self._id_kind = "int"
        self._streams = {name: (hashlib.sha256(), hashlib.sha256()) for name in COLUMNS}

    def update(self, batch: pa.RecordBatch) -> None:
        """Take the next rows; columns beyond COLUMNS are left out."""
        self.rows += batch.num_rows
        if pa.types.is_string(batch.schema.field("point_id").type):
            self._id_kind = "string"
        for name, (integers, text) in self._streams.items():
            column = batch.column(name)
            if pa.types.is_string(column.type):
                integers.update(_integers(pc.binary_length(column), null=-1))
                text.update(_bytes(column))
            else:
                integers.update(_integers(column, null=NULL_INTEGER))

    def hexdigest(self) -> str:
        """Of the rows so far: 64 hex digits."""
        columns: dict[str, JSON] = {
            name: [stream.hexdigest() for stream in streams] for name, streams in self._streams.items()
        }
        return sha256_json({"rows": self.rows, "id_kind": self._id_kind, **columns})


class FirstDigest:
    """The identity that versions up to 0.4 recorded: over the rows as canonical JSON, one a line; slow."""

    def __init__(self) -> None:
        self._stream = hashlib.sha256()

    def update(self, batch: pa.RecordBatch) -> None:
        """Take the next rows, as `DatasetDigest` does."""
        for row in zip(*(batch.column(name).to_pylist() for name in COLUMNS), strict=True):
            self._stream.update(canonical_json(row).encode() + b"\n")

    def hexdigest(self) -> str:
        """Of the rows so far: 64 hex digits."""
        return self._stream.hexdigest()


def _integers(column: pa.Array, null: int) -> Any:
    """A buffer of the values as 8 bytes each."""
    return pc.fill_null(pc.cast(column, pa.int64()), null).to_numpy().astype("<i8", copy=False)


def _bytes(column: pa.Array) -> memoryview:
    """The UTF-8 bytes of all values, one after the other, as they lie in the column."""
    whole = pc.fill_null(column, "") if column.null_count else column  # what lies under a null is anything
    _, offsets, data = whole.buffers()
    if data is None:
        return memoryview(b"")
    bounds = np.frombuffer(offsets, np.int32)[whole.offset : whole.offset + len(whole) + 1]
    return memoryview(data)[bounds[0] : bounds[-1]]
