"""What a column of a file must hold, and what is said where it does not: how many rows, and the first of them."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from flows.errors import BadInput
from flows.workloads.text.files import Rows

ID_DIGITS = 16
SHOWN = 20
HALF = re.compile("[\ud800-\udfff]")


def texts_of(rows: Rows, column: str) -> list[str]:
    """Texts, none of them empty."""
    values = rows.columns[column]
    _refuse(rows, column, "is no text", [not isinstance(value, str) for value in values])
    _refuse_surrogates(rows, column)
    _refuse(rows, column, "is empty", [not value.strip() for value in values], "leave such rows out")
    return list(values)


def names_of(rows: Rows, column: str) -> list[str | None]:
    """Names of groups or sources, times: whatever it is, as text."""
    _refuse_surrogates(rows, column)
    return [None if value is None else str(value) for value in rows.columns[column]]


def ids_of(rows: Rows, column: str) -> list[int] | list[str]:
    """Ids of one type, each once."""
    values = _of_one_type(rows, column)
    _refuse(rows, column, "has no value", [value == "" for value in values])
    large = [isinstance(value, int) and not -(2**63) <= value < 2**63 for value in values]
    _refuse(rows, column, "has more than 64 bits", large, "give such ids as texts")
    first: dict[Any, int] = {}
    for index, value in enumerate(values):
        if first.setdefault(value, index) != index:
            raise BadInput(
                f"{rows.file}: column {column!r}: id {value!r} is in {rows.place(first[value])} and in "
                f"{rows.place(index)}: an id names one point"
            )
    return values


def ids_by_content(texts: Sequence[str]) -> list[str]:
    """Ids where a file has none: 16 digits of the text's sha256; the second of the same text is `…-2`, and so on.

    They stay as they are when rows are appended, or labels corrected.
    """
    seen: Counter[str] = Counter()
    ids = []
    for text in texts:
        short = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:ID_DIGITS]
        seen[short] += 1
        ids.append(short if seen[short] == 1 else f"{short}-{seen[short]}")
    return ids


def classes_of(rows: Rows, column: str, names: Sequence[int | str]) -> tuple[str, ...]:
    """What the classes are called, in the order of their numbers.

    Args:
        rows: Of the train set.
        column: Of labels.
        names: Given by the user; if there are none, integers count the classes from 0, and texts are sorted.
    """
    values = _of_one_type(rows, column)
    if names:
        if len({str(name) for name in names}) < max(2, len(names)):
            raise BadInput(f"labels = {list(names)}: give two or more different names")
        return tuple(map(str, names))
    found = sorted(set(values))
    if isinstance(found[0], int) and found != list(range(len(found))):
        raise BadInput(
            f"{rows.file}: column {column!r} holds {_some(found)}: integers count the classes from 0 without a gap; "
            f"name others by labels = {found[:SHOWN]}"
        )
    if len(found) < 2:
        raise BadInput(f"{rows.file}: column {column!r} holds {found[0]!r} alone: give two classes or more")
    return tuple(map(str, found))


def labels_of(rows: Rows, column: str, classes: Sequence[str]) -> list[int]:
    """Numbers of the classes: integers count them, unless they are what the classes are called."""
    values = _of_one_type(rows, column)
    counted = isinstance(values[0], int) and not all(name.lstrip("-").isdecimal() for name in classes)
    number = {index if counted else name: index for index, name in enumerate(classes)}
    found = [number.get(value if counted else str(value)) for value in values]
    allowed = f"0 to {len(classes) - 1}, which count {_some(classes)}" if counted else _some(classes)
    remedy = f"allowed are {allowed}; give labels = [...] to name others"
    _refuse(rows, column, "is none of the classes", [label is None for label in found], remedy)
    return [label for label in found if label is not None]


def _of_one_type(rows: Rows, column: str) -> list[Any]:
    """All integers, or all texts; truth values are integers."""
    values = [int(value) if isinstance(value, bool) else value for value in rows.columns[column]]
    _refuse(rows, column, "has no value", [value is None or value != value for value in values])  # NaN
    _refuse_surrogates(rows, column)
    kinds = Counter(type(value).__name__ for value in values)
    if len(kinds) > 1:
        most = kinds.most_common(1)[0][0]
        odd = next(index for index, value in enumerate(values) if type(value).__name__ != most)
        raise BadInput(
            f"{rows.file}: column {column!r} holds {', '.join(f'{count:,} {kind}' for kind, count in kinds.items())} "
            f"({rows.place(odd)}: {values[odd]!r}): give values of one type"
        )
    if not isinstance(values[0], int | str):
        raise BadInput(f"{rows.file}: column {column!r} holds {type(values[0]).__name__}: give integers or texts")
    return values


def _refuse_surrogates(rows: Rows, column: str) -> None:
    """Half of a pair of UTF-16, as a cut JSON escape leaves it, which no UTF-8 file can hold."""
    halves = [isinstance(value, str) and HALF.search(value) is not None for value in rows.columns[column]]
    _refuse(rows, column, "holds a lone surrogate", halves, "such a character is damaged: leave it out")


def _refuse(rows: Rows, column: str, what: str, bad: Sequence[bool], remedy: str = "") -> None:
    if not any(bad):
        return
    index, values = list(bad).index(True), rows.columns[column]
    shown = repr(values[index])
    shown = shown if len(shown) <= 2 * SHOWN else shown[: 2 * SHOWN] + "…"
    raise BadInput(
        f"{rows.file}: column {column!r} {what} in {sum(bad):,} of {len(bad):,} rows (the first is "
        f"{rows.place(index)}: {shown})" + (f": {remedy}" if remedy else "")
    )


def _some(values: Sequence[Any]) -> str:
    shown = ", ".join(map(repr, values[:SHOWN]))
    return shown + (", …" if len(values) > SHOWN else "")
