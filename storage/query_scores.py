"""What is known of the queries themselves, as one Parquet file beside the score shards.

    query_id   string
    label      int32    as the query set gives it; null, written as -1, where there are no classes
    predicted  int32    by the model that was scored; likewise
    loss       float64  nats, at that model, which was not trained on the query

A query set is trusted, and still it may hold errors: the report shows the queries that look most like one. With a tenth
of the queries of digits labelled at random, the loss told them apart with an AUC of .996, and 20 of the 20 highest were
wrong; their influence on each other, alone (.36), per square root of self-influence (.46) or joined to the loss by rank
(.84), did not.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from storage.files import atomic_path

QUERIES = "queries.parquet"
COLUMNS: Mapping[str, pa.DataType] = {
    "query_id": pa.string(),
    "label": pa.int32(),
    "predicted": pa.int32(),
    "loss": pa.float64(),
}


def write_queries(folder: Path, columns: Mapping[str, Sequence[str] | NDArray[Any]]) -> None:
    """Write the columns of the module docstring, whole or not at all."""
    table = pa.table({name: pa.array(columns[name], kind) for name, kind in COLUMNS.items()})
    for place, name in ((1, "label"), (2, "predicted")):
        known = pc.if_else(pc.less(table[name], 0), pa.scalar(None, pa.int32()), table[name])
        table = table.set_column(place, name, known)
    with atomic_path(folder / QUERIES) as temporary:
        pq.write_table(table, temporary)


def read_queries(folder: Path) -> pa.Table | None:
    """What `write_queries` wrote, in its order; None for scores that were made before there was such a file."""
    path = folder / QUERIES
    return pq.read_table(path) if path.exists() else None
