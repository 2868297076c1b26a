"""DuckDB over score shards: an in-memory connection with one view, `scores`, that never holds them all in memory."""

import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from storage.errors import ScoresInvalid, StorageError
from storage.interruption import interruptible
from storage.points import PointId
from storage.score_store import shards

MEMORY = "2GB"
"""Of DuckDB; what needs more goes to disk."""


@dataclass(frozen=True)
class Scores:
    """An open connection with the view `scores`; `columns` are its columns, `id_type` that of its point_id."""

    connection: duckdb.DuckDBPyConnection
    columns: tuple[str, ...]
    id_type: pa.DataType

    def select_list(self, names: Sequence[str] | None) -> str:
        """The SQL select list of point_id and `names`, or of everything."""
        return ", ".join(map(quote, dict.fromkeys(["point_id", *(self.columns if names is None else names)])))


@contextmanager
def open_scores(folder: Path, columns: Collection[str]) -> Iterator[Scores]:
    """Open the view `scores` over the shards of a folder; what does not fit in memory spills beside them.

    Args:
        folder: Score shards.
        columns: Columns that must be there.

    Raises:
        ScoresInvalid: names the columns that are not there, and those that are.
        StorageError: there are no shards.
    """
    paths = shards(folder)
    if not paths:
        raise StorageError(f"{folder} holds no score shards; score first")
    schema = pq.read_schema(paths[0])
    missing = sorted(set(columns) - set(schema.names))
    if missing:
        raise ScoresInvalid(f"scores have no column {', '.join(missing)}; they have {', '.join(schema.names)}")
    with (
        tempfile.TemporaryDirectory(prefix=".spill-", dir=folder) as spill,
        duckdb.connect(":memory:") as con,
        interruptible(con),
    ):
        con.execute(f"SET temp_directory = {_text(spill)}")
        con.execute(f"SET memory_limit = {_text(MEMORY)}")
        con.execute(f"CREATE VIEW scores AS {_read(paths)}")
        yield Scores(con, tuple(schema.names), schema.field("point_id").type)


def add_view(scores: Scores, name: str, folder: Path) -> None:
    """Open a view over the shards of another folder beside `scores`.

    Raises:
        StorageError: there are no shards.
    """
    paths = shards(folder)
    if not paths:
        raise StorageError(f"{folder} holds no score shards; score first")
    scores.connection.execute(f"CREATE VIEW {quote(name)} AS {_read(paths)}")


def _read(paths: Sequence[Path]) -> str:
    return f"FROM read_parquet([{', '.join(_text(_no_glob(path)) for path in paths)}])"


def register_ids(scores: Scores, name: str, points: Collection[PointId], labels: Sequence[int] | None = None) -> None:
    """Make a table `name` of point ids, in the type of the scores' ids, with a column `label` if there are labels."""
    try:
        columns = {"point_id": pa.array(list(points), scores.id_type)}
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise StorageError(f"{name} point ids must be {scores.id_type} as in the scores: {error}") from error
    if labels is not None:
        columns["label"] = pa.array(labels, pa.int32())
    scores.connection.register(f"{name}_ids", pa.table(columns))
    scores.connection.execute(f"CREATE TEMP TABLE {quote(name)} AS FROM {quote(name + '_ids')}")


def quote(name: str) -> str:
    """A column name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def _text(value: object) -> str:
    return "'" + str(value).replace("'", "''") + "'"


def _no_glob(path: Path) -> str:
    """A path in which DuckDB's glob characters stand for themselves."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in str(path))
