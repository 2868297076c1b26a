"""What a workload tells of its train points beside their content, by its optional `facets`: length, source, words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from flows.errors import BadInput
from flows.workload import Workload
from storage.points import id_array
from storage.slices import KNOWN

KINDS = "texts, numbers, dates or times, truth values, or sets of texts; None where a point has no value"


def facets_of(workload: Workload) -> pa.Table:
    """The point_id of every train point, and a column for each facet.

    Raises:
        BadInput: A facet has a name that is taken, not one value per point, or values of several kinds.
    """
    ids = [_plain(one) for one in workload.points().ids]
    method = getattr(workload, "facets", None)
    given: Any = method() if method else {}
    if not isinstance(given, Mapping):
        raise BadInput(f"facets() gives a {type(given).__name__}: give by name a value for each train point, a dict")
    columns = {"point_id": id_array(ids)}
    for name, values in given.items():
        _check_name(name)
        columns[name] = _column(name, _values(name, values, len(ids)))
    return pa.table(columns)


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or not name or name in (*KNOWN, "point_id"):
        raise BadInput(f"facets() names one {name!r}: give a text other than {', '.join(KNOWN)}, which Tamis adds")
    try:
        name.encode()
    except UnicodeError as error:
        raise BadInput(f"facets() names one {name!r}: half a surrogate pair is no text; give another name") from error


def _values(name: str, values: Any, points: int) -> list[Any]:
    """One for each point, as Arrow takes it."""
    unordered = isinstance(values, str | bytes | Mapping | set | frozenset)
    try:
        count = -1 if unordered else len(values)
    except TypeError:  # a generator, None, a number, an array without a dimension
        count = -1
    if count < 0:
        raise BadInput(f"facets()[{name!r}] is a {type(values).__name__}: give a list, a value for each train point")
    if count != points:
        raise BadInput(f"facets()[{name!r}] has {count} values for {points} train points: give one for each")
    found: list[Any] = []
    try:
        for value in values:
            found.append(_plain(value))
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise BadInput(f"facets()[{name!r}][{len(found)}] is no value ({_line(error)}): give {KINDS}") from error
    return found


def _column(name: str, values: list[Any]) -> pa.Array:
    for place, value in enumerate(values):
        if isinstance(value, float) and not math.isfinite(value):
            raise BadInput(f"facets()[{name!r}][{place}] is {value}: give a finite number, or None where there is none")
    try:
        column = pa.array(values)
    except (pa.ArrowException, ValueError, TypeError, RuntimeError, OverflowError) as error:  # UnicodeError is one
        raise BadInput(f"facets()[{name!r}] has values of several kinds ({_line(error)}): give {KINDS}") from error
    kind = column.type
    if pa.types.is_null(kind):
        return column.cast(pa.string())
    words = pa.types.is_list(kind) and (pa.types.is_string(kind.value_type) or pa.types.is_null(kind.value_type))
    if words:
        return column.cast(pa.list_(pa.string()))
    numbers = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    if not (numbers or pa.types.is_string(kind) or pa.types.is_date(kind) or pa.types.is_timestamp(kind)):
        raise BadInput(f"facets()[{name!r}] holds {kind}: give {KINDS}")
    return column


def _plain(value: Any) -> Any:
    """A value as Arrow takes it; times in UTC.

    Raises:
        ValueError: It is a time that has no datetime; conversions raise other errors.
    """
    if isinstance(value, np.datetime64):
        time = value.astype("datetime64[us]").item()  # of nanoseconds item() makes an integer
        if isinstance(time, int):
            raise ValueError(f"{value} is beyond the years 1 to 9999")
        return time
    if isinstance(value, Tensor | np.generic):
        return value.item()
    if isinstance(value, set | frozenset):
        return list(value)
    if isinstance(value, datetime):
        if value != value:  # NaT of pandas
            return None
        return value if value.tzinfo is None else value.astimezone(UTC).replace(tzinfo=None)
    return value


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
