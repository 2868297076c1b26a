"""Means over seeds with half of their 95 % t interval."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import mean, stdev

T95 = dict(enumerate((12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14), start=2))


def interval(values: Iterable[float | None], form: str) -> str:
    """Mean ± half of the interval of what is known; one value stands alone, none is a dash."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    if len(known) == 1:
        return f"{known[0]:{form}}"
    half = T95[len(known)] * stdev(known) / math.sqrt(len(known))
    return f"{mean(known):{form}} ± {half:{form.lstrip('+')}}"
