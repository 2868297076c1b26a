"""How commands write: a console that does not cut tables in a pipe, JSON, short digests."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict, is_dataclass
from datetime import datetime
from pathlib import Path

from rich.console import Console

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Characters that move the cursor, break a line or turn the direction of what follows."""


def console(*, markup: bool = True) -> Console:
    """Where tables are printed; without markup where cells hold texts of the data."""
    width = None if sys.stdout.isatty() else 160
    return Console(width=width, highlight=False, markup=markup)


def visible(text: str) -> str:
    """A text of the data as a terminal may show it: control characters as escapes."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def short(value: object) -> str:
    """A value as text, digests by their first 12 digits."""
    text = str(value)
    return text[:12] if re.fullmatch("[0-9a-f]{64}", text) else text


def write_json(value: object) -> None:
    """Print a result as JSON."""
    print(json.dumps(value, default=_plain, indent=2, allow_nan=False))


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} has no JSON form")
