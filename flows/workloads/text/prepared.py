"""A data set of texts, read, checked, dealt into its sets and tokenised once: kept as one Parquet file.

The sets are files of their own, or drawn from the data by a hash of each text's tokens: rows that are appended change
the set of no other row, and the same text is never in two sets.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from flows.errors import BadInput
from flows.workloads.text.columns import classes_of, ids_by_content, ids_of, labels_of, names_of, texts_of
from flows.workloads.text.files import Rows, read_rows
from flows.workloads.text.library import tokenizer_files
from flows.workloads.text.tokens import Tokens, TooLong, set_shares, tokenized
from storage.files import atomic_path, sha256_file, sha256_json

VERSION = 2
"""Of what is kept; another number makes it anew."""
SETS = ("train", "query", "holdout")


@dataclass(frozen=True)
class Columns:
    """Names of columns; empty: there is none."""

    text: str
    label: str
    id: str = ""
    group: str = ""
    source: str = ""
    timestamp: str = ""
    truth: str = ""

    @property
    def given(self) -> tuple[str, ...]:
        """Those that there are."""
        return tuple(name for name in asdict(self).values() if name)

    @property
    def read_as_written(self) -> tuple[str, ...]:
        """The ids, unless they are something else, too."""
        return (self.id,) if self.given.count(self.id) == 1 else ()


@dataclass(frozen=True)
class Spec:
    """All that the prepared data depend on.

    Attributes:
        files: By set; query and holdout set may have none.
        columns: Of every file.
        labels: Names of the classes in the order of their numbers, where they are given.
        model: Its folder.
        max_length: Most tokens of a text.
        too_long: What becomes of a text with more.
        shares: Of the data that a set without a file gets, by set.
    """

    files: Mapping[str, Path]
    columns: Columns
    labels: Sequence[int | str]
    model: Path
    max_length: int
    too_long: TooLong
    shares: Mapping[str, float]

    @property
    def digest(self) -> str:
        """Of all of it, the content of files included."""
        return sha256_json(
            {
                "version": VERSION,
                "files": {name: sha256_file(file) for name, file in self.files.items() if file.is_file()},
                "columns": asdict(self.columns),
                "labels": list(self.labels),
                "model": {file.name: sha256_file(file) for file in self._of_the_model},
                "tokens": [self.max_length, self.too_long],
                "shares": dict(self.shares),
            }
        )

    @property
    def _of_the_model(self) -> list[Path]:
        """What its texts depend on: the tokenizer, and by the configuration how long they may be."""
        return [*tokenizer_files(self.model), self.model / "config.json"]


@dataclass(frozen=True)
class Prepared:
    """The points of all sets.

    Attributes:
        table: A row for each: set, id, text, label, truth, group, source, timestamp, tokens.
        classes: Names of the classes.
        padding: The token for padding.
        file: Where they are kept.
    """

    table: pa.Table
    classes: tuple[str, ...]
    padding: int
    file: Path

    def of(self, name: str) -> pa.Table:
        """The rows of one set, in the order of the file."""
        return self.table.filter(pc.equal(self.table["set"], name))


def tokens_of(table: pa.Table, padding: int) -> Tokens:
    """The tokens of some rows."""
    column = table["tokens"].combine_chunks()
    lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False)
    starts = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
    return Tokens(torch.from_numpy(column.flatten().to_numpy(zero_copy_only=False).astype(np.int64)), starts, padding)


def prepared(spec: Spec, cache: Path) -> Prepared:
    """What is kept for these files and settings, or made of them and kept.

    Raises:
        BadInput: What is wrong with the data, in one line.
    """
    kept = cache / f"texts-{spec.digest[:16]}.parquet"
    if not kept.is_file():
        made = _make(spec)
        with atomic_path(kept) as temporary:
            pq.write_table(made, temporary, compression="zstd")
    table = pq.read_table(kept)
    said = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    return Prepared(table, tuple(json.loads(said["classes"])), int(said["padding"]), kept)


def _make(spec: Spec) -> pa.Table:
    rows = {
        name: read_rows(file, spec.columns.given, spec.columns.read_as_written) for name, file in spec.files.items()
    }
    classes = classes_of(rows["train"], spec.columns.label, spec.labels)
    parts = {name: _columns(own, spec.columns, classes) for name, own in rows.items()}
    texts = [text for part in parts.values() for text in part["text"].to_pylist()]
    places = [f"{own.place(index)} of {own.file}" for own in rows.values() for index in range(len(own))]
    tokens, padding = tokenized(texts, places, spec.model, spec.max_length, spec.too_long)
    sets = [name for name, part in parts.items() for _ in part["id"]]
    _check_ids(rows, parts)
    whole = pa.concat_tables([pa.table(part) for part in parts.values()])
    whole = whole.append_column("set", pa.array(_dealt(sets, set_shares(tokens), spec.shares)))
    whole = whole.append_column("tokens", pa.array(tokens, pa.list_(pa.int32())))
    _check_sets(whole, spec.shares)
    return whole.replace_schema_metadata({"classes": json.dumps(classes), "padding": str(padding)})


def _columns(rows: Rows, columns: Columns, classes: Sequence[str]) -> dict[str, pa.Array]:
    texts = texts_of(rows, columns.text)
    numbers = labels_of(rows, columns.label, classes)
    named = {"group": columns.group, "source": columns.source, "timestamp": columns.timestamp}
    values: dict[str, pa.Array] = {
        "id": pa.array(ids_of(rows, columns.id) if columns.id else ids_by_content(texts)),
        "text": pa.array(texts, pa.string()),
        "label": pa.array(numbers, pa.int32()),
        "truth": pa.array(labels_of(rows, columns.truth, classes), pa.int32()) if columns.truth else _nulls(rows),
    }
    for key, name in named.items():
        values[key] = pa.array(names_of(rows, name) if name else [None] * len(texts), pa.string())
    return values


def _check_ids(rows: Mapping[str, Rows], parts: Mapping[str, Mapping[str, pa.Array]]) -> None:
    kinds = {str(rows[name].file): str(part["id"].type) for name, part in parts.items()}
    if len(set(kinds.values())) > 1:
        raise BadInput(f"ids are of different types ({', '.join(map(': '.join, kinds.items()))}): give one type")


def _nulls(rows: Rows) -> pa.Array:
    return pa.nulls(len(rows), pa.int32())


def _dealt(files: Sequence[str], at: Sequence[float], shares: Mapping[str, float]) -> list[str]:
    """The set of each row: of the file that it is from, or for the data set by where its number falls."""
    query = shares.get("query", 0.0)
    bounds = (("query", query), ("holdout", query + shares.get("holdout", 0.0)))
    return [
        file if file != "train" else next((name for name, bound in bounds if place < bound), "train")
        for file, place in zip(files, at)
    ]


def _check_sets(table: pa.Table, shares: Mapping[str, Any]) -> None:
    counts = {name: int(pc.sum(pc.equal(table["set"], name)).as_py() or 0) for name in SETS}
    if empty := [name for name, count in counts.items() if not count]:
        said = ", ".join(f"{count:,} {name}" for name, count in counts.items())
        raise BadInput(
            f"the {empty[0]} set is empty ({said}; shares of the data: {dict(shares)}): give more texts, another "
            "share, or a file of its own"
        )
