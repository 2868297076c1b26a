"""A file of texts as columns of Python values: Parquet, JSONL, CSV or TSV. What they hold is checked in `columns`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from flows.errors import BadInput


@dataclass(frozen=True)
class Rows:
    """Some columns of a file.

    Attributes:
        file: Where from.
        unit: What a row is called, `row` or `line`, counted from `first`.
        first: Number of the first.
        columns: Values by the name of the column.
    """

    file: Path
    unit: str
    first: int
    columns: Mapping[str, Sequence[Any]]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def place(self, index: int) -> str:
        """How a message names a row."""
        return f"{self.unit} {self.first + index}"


Reader: TypeAlias = Callable[[Path, Sequence[str], Sequence[str]], Rows]


def read_rows(file: Path, names: Sequence[str], texts: Sequence[str] = ()) -> Rows:
    """Read some columns of a file whole.

    Args:
        file: Of texts.
        names: Of the columns.
        texts: Those that are read as they are written where a file does not say its types: 001 is not 1.

    Raises:
        BadInput: The file is missing, of no known kind, damaged, empty, or lacks a column.
    """
    reader = READERS.get(file.suffix.lower())
    if reader is None:
        raise BadInput(f"{file}: {file.suffix or 'no ending'} is no known kind of file: give {', '.join(READERS)}")
    if not file.is_file():
        raise BadInput(f"{file}: no such file")
    rows = reader(file, tuple(dict.fromkeys(names)), texts)
    if not len(rows):
        raise BadInput(f"{file}: holds no row")
    return rows


def _parquet(file: Path, names: Sequence[str], _: Sequence[str]) -> Rows:
    try:
        opened = pq.ParquetFile(file)
        _check(file, names, opened.schema_arrow.names)
        table = opened.read(columns=list(names))
    except (pa.ArrowException, OSError) as error:
        raise BadInput(f"{file}: not a whole Parquet file: {_line(error)}") from error
    return Rows(file, "row", 1, {name: table[name].to_pylist() for name in names})


def _separated(separator: str) -> Reader:
    def read(file: Path, names: Sequence[str], texts: Sequence[str]) -> Rows:
        try:
            with pa.csv.open_csv(file, parse_options=pa.csv.ParseOptions(delimiter=separator)) as header:
                _check(file, names, header.schema.names)
            table = pa.csv.read_csv(
                file,
                parse_options=pa.csv.ParseOptions(delimiter=separator, newlines_in_values=True),
                convert_options=pa.csv.ConvertOptions(
                    include_columns=list(names),
                    strings_can_be_null=False,
                    column_types={name: pa.string() for name in texts},
                ),
            )
        except (pa.ArrowException, OSError) as error:
            raise BadInput(f"{file}: cannot be read: {_line(error)}") from error
        if binary := [field.name for field in table.schema if pa.types.is_binary(field.type)]:
            raise BadInput(f"{file}: column {binary[0]!r} is not UTF-8: save the file as UTF-8")
        return Rows(file, "row", 1, {name: table[name].to_pylist() for name in names})

    return read


def _json_lines(file: Path, names: Sequence[str], _: Sequence[str]) -> Rows:
    found: dict[str, list[Any]] = {name: [] for name in names}
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            row = _object(file, number, line)
            if missing := [name for name in names if name not in row]:
                _missing(f"{file}, line {number}", missing[0], list(row))
            for name in names:
                found[name].append(row[name])
    return Rows(file, "line", 1, found)


def _object(file: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise BadInput(f"{file}, line {number}: not UTF-8 at byte {error.start}: save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        raise BadInput(
            f"{file}, line {number}: not a JSON object in one line ({error.msg}): was the file cut, or is it one JSON?"
        ) from error
    if not isinstance(row, dict):
        raise BadInput(f"{file}, line {number}: holds a {type(row).__name__}: give one JSON object for each text")
    return row


def _check(file: Path, names: Sequence[str], there: Sequence[str]) -> None:
    if missing := [name for name in names if name not in there]:
        _missing(str(file), missing[0], there)


def _missing(where: str, name: str, there: Sequence[str]) -> None:
    raise BadInput(f"{where}: no column {name!r}: there are {', '.join(map(repr, there)) or 'none'}")


def _line(error: Exception) -> str:
    return str(error).splitlines()[0]


READERS: Mapping[str, Reader] = {
    ".parquet": _parquet,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".csv": _separated(","),
    ".tsv": _separated("\t"),
}
