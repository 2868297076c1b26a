"""The points that a training dropped on its way, for itself alone.

<checkpoints>/<role>-seed…/dropped.parquet   point_id; step and epoch after which it was dropped; influence (nats,
                                             positive = helpful) and influence_se then; in the order of the drops
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from storage.files import atomic_path

DROPPED = "dropped.parquet"


def empty(ids: pa.DataType) -> pa.Table:
    """No point, of ids of this type."""
    numbers = [("step", pa.int64()), ("epoch", pa.int32()), ("influence", pa.float64()), ("influence_se", pa.float64())]
    return pa.schema([("point_id", ids), *numbers]).empty_table()


def write(folder: Path, table: pa.Table) -> Path:
    """Write the file, whole or not at all."""
    with atomic_path(folder / DROPPED) as draft:
        pq.write_table(table, draft)
    return folder / DROPPED


def read(folder: Path) -> pa.Table | None:
    """The table, if the training was one that drops points."""
    path = folder / DROPPED
    return pq.read_table(path) if path.exists() else None
