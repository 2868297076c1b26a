"""What a workload tells of its train points beside their content, by its optional `facets`: length, source, words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
    given: Mapping[str, Sequence[Any]] = method() if method else {}
    columns = {"point_id": id_array(ids)}
    for name, values in given.items():
        if not isinstance(name, str) or not name or name in (*KNOWN, "point_id"):
            raise BadInput(f"facets() names one {name!r}: give a text other than {', '.join(KNOWN)}, which Tamis adds")
        if len(values) != len(ids):
            raise BadInput(
                f"facets()[{name!r}] has {len(values)} values for {len(ids)} train points: give one for each"
            )
        columns[name] = _column(name, [_plain(value) for value in values])
    return pa.table(columns)


def _column(name: str, values: list[Any]) -> pa.Array:
    for place, value in enumerate(values):
        if isinstance(value, float) and not math.isfinite(value):
            raise BadInput(f"facets()[{name!r}][{place}] is {value}: give a finite number, or None where there is none")
    try:
        column = pa.array(values)
    except (pa.ArrowException, OverflowError, UnicodeError) as error:
        raise BadInput(f"facets()[{name!r}] has values of several kinds ({error}): give {KINDS}") from error
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
    """A value as Arrow takes it; times in UTC."""
    if isinstance(value, Tensor | np.generic):
        return value.item()
    if isinstance(value, set | frozenset):
        return list(value)
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.astimezone(UTC).replace(tzinfo=None)
    return value
