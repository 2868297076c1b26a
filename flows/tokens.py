"""Whether the optional `tokens` of a workload gives what the report shows influence by: a text for each position."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from flows.errors import BadInput
from storage.points import PointId


def check_tokens(workload: Any, point: PointId, positions: Collection[int]) -> None:
    """Try it on a train point.

    Args:
        workload: That has the method.
        point: The point.
        positions: That the scored layers have of it; 1 is that of layers behind a mean.

    Raises:
        BadInput: It breaks, gives no list of texts, or another number than the layers have positions.
    """
    where = f"tokens({point!r})"
    try:
        found = workload.tokens(point)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:  # as it has it
        said = " ".join(str(error).split())[:200]
        raise BadInput(f"{where} breaks ({type(error).__name__}: {said}): mend it, or leave the method out") from error
    listed = isinstance(found, Sequence) and not isinstance(found, str)
    if not listed or not all(isinstance(one, str) for one in found):
        raise BadInput(f"{where} gives a {type(found).__name__}: give a list of texts, one for each position")
    several = {count for count in positions if count > 1}
    if several and len(found) not in several:
        raise BadInput(
            f"{where} gives {len(found)} texts, and the scored layers have {' or '.join(map(str, sorted(several)))} "
            "positions of this point: give one for each position of it in a batch of its own"
        )
