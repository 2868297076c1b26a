"""One set of texts as a workload gives it: tokens of its own length and a label each."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from flows.workloads.text.prepared import tokens_of
from flows.workloads.text.tokens import Batch, padded


class TextSet(torch.utils.data.Dataset[dict[str, Any]]):
    """The rows of one set.

    Args:
        table: As `prepared` keeps them.
        labels: Given, of each row.
        padding: The token for padding.

    Attributes:
        lengths: In tokens.
        sources: Where each text is from, where that is known.
        timestamps: When each was written, where that is known.
    """

    def __init__(self, table: pa.Table, labels: Tensor, padding: int) -> None:
        self.ids: Sequence[int] | Sequence[str] = table["id"].to_pylist()
        self.labels: list[int] = labels.tolist()
        self.groups: list[str | None] | None = _named(table, "group")
        self.sources, self.timestamps = _named(table, "source"), _named(table, "timestamp")
        self._texts, self._given = table["text"], labels
        self._tokens = tokens_of(table, padding)
        self.lengths: list[int] = self._tokens.lengths.tolist()
        self._row = {id_: row for row, id_ in enumerate(self.ids)}

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self._tokens.row(index), "labels": self.labels[index]}

    def batch_of(self, rows: Tensor) -> Batch:
        """The batch of these points at once."""
        return self._tokens.padded(rows) | {"labels": self._given[rows]}

    def text(self, point_id: int | str) -> str:
        """A text, after its source and time where these are known."""
        row = self._row[point_id]
        known = [names[row] for names in (self.sources, self.timestamps) if names is not None and names[row]]
        text: str = self._texts[row].as_py()
        return f"[{', '.join(map(str, known))}] {text}" if known else text

    def tokens(self, point_id: int | str) -> list[int]:
        """Of one text, as many as it has positions in a batch of its own."""
        found: list[int] = self._tokens.row(self._row[point_id]).tolist()
        return found

    def facets(self) -> dict[str, Sequence[Any]]:
        """Length in tokens, source and time where they are known, and words."""
        words = [set(re.findall(r"\w+", text.lower())) for text in self._texts.to_pylist()]
        known = facets_of_rows(self.lengths, self.sources, self.timestamps)
        return known | {"words": words}


def facets_of_rows(
    lengths: Sequence[int], sources: Sequence[str | None] | None, times: Sequence[str | None] | None
) -> dict[str, Sequence[Any]]:
    """Facets that any text has, and those that are known."""
    found: dict[str, Sequence[Any]] = {"length": lengths}
    if sources is not None:
        found["source"] = sources
    if times is not None:
        found["time"] = _times(times)
    return found


def _times(values: Sequence[str | None]) -> Sequence[Any]:
    """Numbers or times if all of them are, so that they have an order; otherwise the texts."""
    kinds: tuple[Callable[[str], Any], ...] = (_number, datetime.fromisoformat)
    for kind in kinds:
        try:
            return [None if value is None else kind(value) for value in values]
        except ValueError:
            continue
    return values


def _number(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(text)
    return number


def collated(samples: Sequence[dict[str, Any]], padding: int) -> Batch:
    """What `batch_of` makes of the same points."""
    labels = torch.tensor([sample["labels"] for sample in samples], dtype=torch.int64)
    return padded([sample["input_ids"] for sample in samples], padding) | {"labels": labels}


def _named(table: pa.Table, column: str) -> list[str | None] | None:
    values: list[str | None] = table[column].to_pylist()
    return values if any(value is not None for value in values) else None
