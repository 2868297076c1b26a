"""Fitting curvatures: as many passes over the train points as the one that needs most."""

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor

from influence.curvature.base import AllReduce, Curvature, alone
from influence.errors import InfluenceError
from influence.factored import Factors
from influence.reading import Reading


def fit(
    curvatures: Sequence[Curvature],
    passes: Callable[[], Iterable[tuple[Reading, Tensor]]],
    all_reduce: AllReduce = alone,
) -> None:
    """Accumulate and reduce; `finish` is left to the caller, who knows the damping.

    Args:
        curvatures: each takes the blocks that it was made for.
        passes: called once per pass: this rank's readings with roots, each with the weights of its points [B], 1 for
            points in the train set and 0 for others.
        all_reduce: sums a float64 tensor over ranks, in place.
    """
    for turn in range(max(curvature.passes for curvature in curvatures)):
        active = [curvature for curvature in curvatures if turn < curvature.passes]
        for reading, weights in passes():
            if reading.roots is None:
                raise InfluenceError("a curvature is fitted on Fisher roots: read the points with roots=True")
            for curvature in active:
                curvature.accumulate(subset(reading.roots, curvature.blocks), weights)
        for curvature in active:
            curvature.reduce(all_reduce)


def subset(factors: Factors, blocks: Sequence[str]) -> Factors:
    """The factors of some blocks."""
    return {name: factors[name] for name in blocks}
