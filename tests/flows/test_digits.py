"""Digits with planted errors: as many as were asked for, and of the kind."""

import pytest

from flows.workloads.digits import MISLED, TAKEN_FOR, Digits
from flows.workloads.label_errors import Corruption

POINTS = 500


def wrong(corruption: Corruption, rate: float) -> dict[int, tuple[int, int]]:
    """True and given label of every point with a wrong one."""
    workload = Digits(corruption, rate, points=POINTS, queries=100)
    given, truth = workload.points(), workload.truth()
    return {id_: (truth[id_], label) for id_, label in zip(given.ids, given.labels) if truth[id_] != label}


@pytest.mark.parametrize("corruption", ["flips", "class_dependent", "systematic", "mixed", "foreign"])
def test_exactly_the_rate_of_the_points_carries_a_wrong_label(corruption: Corruption) -> None:
    assert len(wrong(corruption, 0.1)) == 0.1 * POINTS


def test_half_of_the_mixed_errors_are_the_systematic_ones_of_half_the_rate() -> None:
    systematic, mixed = wrong("systematic", 0.1), wrong("mixed", 0.2)
    assert set(systematic.values()) == {MISLED[0]}
    assert systematic.items() <= mixed.items()


def test_foreign_points_are_half_as_bright_and_labelled_by_another_rule() -> None:
    foreign, clean = (Digits(kind, 0.2, points=POINTS, queries=100) for kind in ("foreign", "flips"))
    found = wrong("foreign", 0.2)
    assert all(given == TAKEN_FOR[true] for true, given in found.values())
    ours, theirs = foreign.points(), clean.points()
    for row, id_ in enumerate(ours.ids):
        assert ours[row][0].equal(theirs[row][0] / 2 if id_ in found else theirs[row][0])
    assert foreign.queries()[0][0].equal(clean.queries()[0][0])
