"""One set of texts as a workload gives it: tokens of its own length and a label each."""

from __future__ import annotations

from collections.abc import Sequence
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


def collated(samples: Sequence[dict[str, Any]], padding: int) -> Batch:
    """What `batch_of` makes of the same points."""
    labels = torch.tensor([sample["labels"] for sample in samples], dtype=torch.int64)
    return padded([sample["input_ids"] for sample in samples], padding) | {"labels": labels}


def _named(table: pa.Table, column: str) -> list[str | None] | None:
    values: list[str | None] = table[column].to_pylist()
    return values if any(value is not None for value in values) else None
