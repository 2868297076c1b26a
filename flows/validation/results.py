"""What a validation found, as rows: a signal, a measure, its value and 95 % interval."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from influence.validation import Interval
from storage.files import atomic_write_json

HEADLINE_SHARE = 0.1


@dataclass(frozen=True)
class Row:
    """One number.

    Attributes:
        signal: What was judged: `influence`, `loss`, …
        measure: What it was judged by, with the unit where there is one.
        low: With `high`, the 95 % bootstrap interval.
        share: Of the train set that was removed, in a pruning curve.
    """

    signal: str
    measure: str
    value: float
    low: float
    high: float
    share: float | None = None


def row(signal: str, measure: str, interval: Interval, share: float | None = None) -> Row:
    """The row of an interval."""
    return Row(signal, measure, interval.value, interval.low, interval.high, share)


@dataclass(frozen=True)
class Study:
    """The result of one study; `protocol` says in one sentence how it was measured."""

    name: str
    protocol: str
    rows: tuple[Row, ...]

    @property
    def by_measure(self) -> dict[str, dict[str, list[Row]]]:
        """Measure to signal to its rows, of which a pruning curve has one per share."""
        table: dict[str, dict[str, list[Row]]] = {}
        for row in self.rows:
            table.setdefault(row.measure, {}).setdefault(row.signal, []).append(row)
        return table

    @property
    def headline(self) -> dict[str, float]:
        """The first measure of each signal, of a pruning curve after a tenth was removed: few enough for metrics."""
        measure, signals = next(iter(self.by_measure.items()))
        return {
            f"{measure} of {signal}": row.value
            for signal, rows in signals.items()
            for row in rows
            if row.share in (None, 0.0, HEADLINE_SHARE)
        }


@dataclass(frozen=True)
class Validation:
    """All studies of one command.

    Attributes:
        dataset: Name of the data set.
        estimator: What computed the influence.
        points: Train points.
        queries: Queries.
        folder: Where this is written, with a figure for each study and the outcome of every retrained model.
    """

    dataset: str
    estimator: str
    points: int
    queries: int
    folder: Path
    studies: tuple[Study, ...]

    def write(self) -> None:
        """Write validation.json."""
        atomic_write_json(self.folder / "validation.json", asdict(self) | {"folder": str(self.folder)})
