"""Point ids in a file that a person gives: one per line, or the column `point_id` of a Parquet or CSV table."""

from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq

from storage.errors import StorageError


def read_ids(path: Path) -> list[str]:
    """The ids of a file, as text; lines without one are left out.

    Raises:
        StorageError: the file cannot be read, holds no id, or is a table without the column.
    """
    try:
        if path.suffix == ".parquet":
            ids = [str(value) for value in pq.read_table(path, columns=["point_id"])["point_id"].to_pylist()]
        elif path.suffix == ".csv":
            as_text = pc.ConvertOptions(column_types={"point_id": pa.string()}, include_columns=["point_id"])
            ids = pc.read_csv(path, convert_options=as_text)["point_id"].to_pylist()
        else:
            ids = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError, KeyError, pa.ArrowException) as error:
        why = str(error).splitlines()[0]
        raise StorageError(
            f"cannot read point ids from {path}: {why}; give one id per line, or a column point_id"
        ) from error
    if not ids:
        raise StorageError(f"{path} holds no point id; give one per line, or a Parquet or CSV with a column point_id")
    return ids
