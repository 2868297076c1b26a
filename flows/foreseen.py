"""What a removal was foretold to do to the query set, and what training without the points then did."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from flows.bounds import Estimate, draw_mean
from flows.plans import QUERIES
from influence.validation import pearson

INFLUENCE, UNLEARNING = "influence step", "unlearning step"
METHODS = (INFLUENCE, UNLEARNING)
RESAMPLES, SEED = 2000, 0


@dataclass(frozen=True)
class Change:
    """Of the query set: of its mean loss in nats, and of its accuracy as a share, None where there are no classes."""

    loss: Estimate
    accuracy: float | None

    @property
    def said(self) -> str:
        """For people."""
        interval = f"[{self.loss.low:+.4f}, {self.loss.high:+.4f}]"
        hits = "" if self.accuracy is None else f", accuracy {100 * self.accuracy:+.1f} points"
        return f"loss {self.loss.mean:+.4f} {interval} nats{hits}"


@dataclass(frozen=True)
class Foreseen:
    """One method's word against the truth.

    Attributes:
        method: Of METHODS.
        predicted: One model's change, its interval over queries.
        real: After retraining, over seeds and queries; None before that.
        correlation: Pearson, of the changes of single queries; None where one of both does not vary.
    """

    method: str
    predicted: Change
    real: Change | None
    correlation: float | None

    @property
    def said(self) -> str:
        """One line."""
        if self.real is None:
            return f"{self.predicted.said}"
        r = "-" if self.correlation is None else f"{self.correlation:.2f}"
        return f"{self.predicted.said}; after retraining {self.real.said}; correlation over queries {r}"


def column(what: str, method: str) -> str:
    """Where a preview's file holds `loss` or `correct` after a method's step; of the model itself without one."""
    return "_".join([what, *method.split()])


def foreseen(file: Path, arms: tuple[Sequence[Path], Sequence[Path]] | None) -> tuple[Foreseen, ...]:
    """Compare.

    Args:
        file: A preview's, with the queries in the order of their manifest.
        arms: Folders of the baselines and of the challengers, by seed, once they are trained. The truth is left out
            where the query set changed since the preview.
    """
    table, real, changes = pq.read_table(file), None, None
    if arms is not None and _same_queries(table, [*arms[0], *arms[1]]):
        changes, hits = (_of_arm(arms[1], what) - _of_arm(arms[0], what) for what in ("loss", "correct"))  # [S, m]
        real = _change(changes, hits)
    return tuple(
        Foreseen(method, _change(loss, _moved(table, "correct", method)), real, _correlation(loss, changes))
        for method in METHODS
        if column("loss", method) in table.column_names
        for loss in [_moved(table, "loss", method)]
        if bool(loss.isfinite().all())  # a step can leave the range where the model gives numbers
    )


def _same_queries(table: pa.Table, folders: Sequence[Path]) -> bool:
    """Whether the models were asked what the preview was; a query that is mended in the meantime is another."""
    asked = table.select(["point_id", "label"])
    return all(pq.read_table(folder / QUERIES, columns=["point_id", "label"]).equals(asked) for folder in folders)


def _change(loss: Tensor, hits: Tensor) -> Change:
    share = float(hits.mean())
    return Change(draw_mean(loss, RESAMPLES, SEED).estimate(), None if math.isnan(share) else share)


def _correlation(loss: Tensor, changes: Tensor | None) -> float | None:
    found = math.nan if changes is None else pearson(loss[0], changes.mean(0))
    return found if math.isfinite(found) else None


def _moved(table: pa.Table, what: str, method: str) -> Tensor:
    """Of each query by the step, `[1, m]`."""
    return (_values(table, column(what, method)) - _values(table, what))[None]


def _of_arm(folders: Sequence[Path], what: str) -> Tensor:
    return torch.stack([_values(pq.read_table(folder / QUERIES), what) for folder in folders])


def _values(table: pa.Table, name: str) -> Tensor:
    values = [math.nan if value is None else value for value in table[name].to_pylist()]
    return torch.tensor(values, dtype=torch.float64)
