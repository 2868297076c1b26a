"""When cells were measured, which is not when a page is printed."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date
from pathlib import Path


def days(cells: Iterable[Path]) -> str:
    """The day of the files, or the first and the last of several; of none, a dash."""
    found = sorted({date.fromtimestamp(cell.stat().st_mtime).isoformat() for cell in cells})
    return " to ".join(dict.fromkeys((found[0], found[-1]))) if found else "-"
