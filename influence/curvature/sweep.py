"""One curvature under several dampings: what was accumulated is used again, only `finish` is repeated."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from influence.curvature.base import Curvature, Damping

Measured = TypeVar("Measured")


@dataclass(frozen=True)
class SweepPoint(Generic[Measured]):
    """What was measured under one damping."""

    damping: Damping
    measured: Measured


def damping_sweep(
    curvature: Curvature, dampings: Iterable[Damping], measure: Callable[[Curvature], Measured]
) -> tuple[SweepPoint[Measured], ...]:
    """Measure a curvature under each damping, in the order given; afterwards the last one holds.

    Args:
        curvature: its passes are over; finished or not.
        dampings: what to try.
        measure: of the finished curvature, e.g. its diagnostics or the quality of its scores.
    """

    def at(damping: Damping) -> SweepPoint[Measured]:
        curvature.finish(damping)
        return SweepPoint(damping, measure(curvature))

    return tuple(at(damping) for damping in dampings)
