"""Where the harm is: slices of the points in training by the sum of their influence, and which of them are a pattern.

A slice is a pattern if its points are more harmful, on average, than all others, beyond what as many points taken
anywhere would be by chance: a one-sided test of the two means, corrected after Holm for all slices, so that where no
slice differs one is marked in at most one report of twenty, however slices overlap. Influence has long tails. A few
extreme points inside a slice make its own spread large, and a slice that has none by chance seems surer than it is: so
Student's t is taken with the slice's own variance and with that of all points, and the larger p counts. The interval of
a sum is by the wider of the same two errors, each slice by itself: what as many points like these would add up to. The
queries are the same for all slices, and their error is not in it.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import sqrt

from scipy.special import stdtr, stdtrit

from flows.bounds import holm
from flows.facets import facets_of
from flows.scoring import Scored
from flows.workload import Workload
from storage.proposals import Proposal
from storage.report_parts import Interval, Slice
from storage.slices import Sliced, Sums, sum_slices

LEVEL = 0.05
SAID = 3
LETTERS = 100
"""Of a name, at most."""


def slices_of(workload: Workload, scored: Scored, proposal: Proposal) -> list[Slice]:
    """All slices of the points in training, the most harmful sum first."""
    rows = zip(proposal.points, proposal.rows["action"].to_pylist())
    return ranked(
        sum_slices(scored.folder, facets_of(workload), [point for point, action in rows if action != "restore"])
    )


def ranked(sliced: Sliced) -> list[Slice]:
    """The slices with their intervals and tests, the most harmful sum first."""
    whole = sliced.whole
    p = holm({str(place): _p(one, whole) for place, one in enumerate(sliced.slices)})
    slices = [_slice(one, whole, p[str(place)]) for place, one in enumerate(sliced.slices)]
    return sorted(slices, key=lambda one: (one.total.mean, one.facet, one.name))


def patterns(slices: Iterable[Slice]) -> tuple[str, ...]:
    """The first of the slices that are a pattern, a line each."""
    marked = [one for one in slices if one.pattern]
    return tuple(
        f"{one.facet} {one.name}: {one.points:,} points, {one.total.mean:+.3g} nats "
        f"[{one.total.low:+.3g}, {one.total.high:+.3g}], {one.share:.0%} of the proposal"
        for one in marked[:SAID]
    )


def _p(one: Sums, whole: Sums) -> float:
    """p-value of the mean influence of the points of a slice being at least that of the others."""
    rest = whole.points - one.points
    difference = one.total / one.points - (whole.total - one.total) / rest
    errors = [sqrt(variance * (1 / one.points + 1 / rest)) for variance in (one.variance, whole.variance)]
    if not errors[1]:
        return 1.0  # all points have the same influence
    return max(float(stdtr(of, difference / error)) for of, error in zip(_degrees(one, whole), errors) if error)


def _degrees(one: Sums, whole: Sums) -> tuple[int, int]:
    """Of freedom, of the variance of the slice and of that of all points."""
    return one.points - 1, whole.points - 1


def _half(one: Sums, whole: Sums) -> float:
    """Half of the 95 % interval of the sum, by the larger of the two errors."""
    variances = one.variance, whole.variance
    return max(
        float(stdtrit(of, 1 - LEVEL / 2)) * sqrt(one.points * variance)
        for of, variance in zip(_degrees(one, whole), variances)
    )


def _slice(one: Sums, whole: Sums, p: float) -> Slice:
    half = _half(one, whole)
    share = one.chosen / whole.chosen if whole.chosen else 0.0
    low, high = one.low if one.low is not None else "none", one.high
    return Slice(
        facet=one.facet,
        name=low[:LETTERS] if high is None or high == low else f"{low} to {high}",
        points=one.points,
        total=Interval(one.total, one.total - half, one.total + half),
        p=p,
        pattern=p < LEVEL and one.total < 0,
        proposed=one.chosen,
        share=share,
        lift=share * whole.points / one.points,
    )
