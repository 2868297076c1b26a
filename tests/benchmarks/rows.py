"""What was measured, row by row, and the page that shows it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One figure beside its target.

    Attributes:
        what: was measured.
        on: the setup and its sizes.
        measured: the figure.
        unit: of it, e.g. `x floor`.
        target: at most this (at least, where the unit says so); None where there is none.
        note: what the figure is made of, agreement with the other side included.
    """

    what: str
    on: str
    measured: float
    unit: str
    target: float | None
    note: str = ""


def write(path: Path, rows: Sequence[Row]) -> None:
    """Keep the rows of one part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(row) for row in rows], indent=1))


def table(rows: Iterable[tuple[Row, str]]) -> str:
    """Markdown, of rows with when they were measured."""
    lines = ["| what | on | measured | target | | how | when |", "|---|---|---|---|---|---|---|"]
    for row, at in rows:
        target = "" if row.target is None else f"{row.target:.3g}"
        verdict = "" if row.target is None else "met" if row.measured <= row.target else "missed"
        shown = f"| {row.what} | {row.on} | {row.measured:.3g} {row.unit} | {target} | {verdict} | {row.note} |"
        lines.append(f"{shown} {at} |")
    return "\n".join(lines)
