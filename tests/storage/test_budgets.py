"""Whatever the table, no budget is exceeded, and who goes is what a walk down the list would take."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import floor

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.budgets import Budgets, Cells, Outcome, spend
from storage.errors import InvalidBudget

SEEDED = settings(deadline=None, derandomize=True, max_examples=300)
SHARES = st.sampled_from([0.01, 0.1, 0.29, 0.3, 1 / 3, 0.5, 0.9, 1.0])


@dataclass(frozen=True)
class Point:
    label: int | None
    group: str | None
    in_train: bool = True
    relabeled: bool = False
    candidate: bool = True


POINTS = st.lists(
    st.builds(
        Point,
        label=st.sampled_from([None, 0, 1, 2]),
        group=st.sampled_from([None, "", "a", "b'\"", "é"]),
        in_train=st.booleans() | st.just(True),
        relabeled=st.just(False) | st.booleans(),
        candidate=st.just(True) | st.booleans(),
    ),
    min_size=1,
    max_size=60,
)
BUDGETS = st.builds(
    Budgets,
    cycle=SHARES,
    cumulative=SHARES,
    per_class=SHARES,
    minimum_kept=st.integers(1, 20),
    per_group=SHARES,
    minimum_per_class=st.integers(0, 5),
)


def cells_of(points: Sequence[Point]) -> tuple[Cells, list[tuple[int | None, str | None]]]:
    keys = list(dict.fromkeys((point.label, point.group) for point in points))

    def count(chosen: Sequence[bool]) -> np.ndarray:
        found = Counter((point.label, point.group) for point, one in zip(points, chosen, strict=True) if one)
        return np.array([found[key] for key in keys], dtype=np.int64)

    return Cells(
        label=pa.array([label for label, _ in keys], pa.int32()),
        group=pa.array([group for _, group in keys], pa.string()),
        points=count([True] * len(points)),
        in_train=count([point.in_train for point in points]),
        spent=count([not point.in_train or point.relabeled for point in points]),
        relabeled=count([point.in_train and point.relabeled for point in points]),
    ), keys


def gone(points: Sequence[Point], budgets: Budgets, batch: int = 7) -> tuple[list[int], Outcome]:
    """The places of the points that go, those of the list that are candidates being in the order of their ranks."""
    cells, keys = cells_of(points)
    places = [i for i, point in enumerate(points) if point.candidate and point.in_train]
    order = np.array([keys.index((points[i].label, points[i].group)) for i in places], dtype=np.int64)
    outcome = spend(cells, budgets, (order[k : k + batch] for k in range(0, len(order), batch)))
    ranks = enumerate(zip(places, order, strict=True), start=1)
    return [i for rank, (i, cell) in ranks if rank <= min(int(outcome.through[cell]), outcome.last)], outcome


def greedy(points: Sequence[Point], budgets: Budgets) -> list[int]:
    """The definition: take each in turn if its class, its group and the total still have room."""
    spent = [not point.in_train or point.relabeled for point in points]
    sizes = {"label": Counter(p.label for p in points), "group": Counter(p.group for p in points)}
    used = {
        "label": Counter(p.label for p, s in zip(points, spent, strict=True) if s),
        "group": Counter(p.group for p, s in zip(points, spent, strict=True) if s),
    }
    in_train = sum(point.in_train for point in points)
    total = min(
        floor(budgets.cycle * in_train + 1e-9),
        floor(budgets.cumulative * len(points) + 1e-9) - sum(spent),
        in_train - budgets.minimum_kept,
    )
    taken: list[int] = []
    for i, p in enumerate(points):
        if not (p.candidate and p.in_train) or len(taken) >= total:
            continue
        size = sizes["label"][p.label]
        of_class = min(floor(budgets.per_class * size + 1e-9), size - budgets.minimum_per_class)
        fits_class = p.label is None or used["label"][p.label] < of_class
        fits_group = p.group is None or used["group"][p.group] < floor(
            budgets.per_group * sizes["group"][p.group] + 1e-9
        )
        if fits_class and fits_group:
            taken.append(i)
            used["label"][p.label] += 1
            used["group"][p.group] += 1
    return taken


@SEEDED
@given(POINTS, BUDGETS, st.integers(1, 70))
def test_who_goes_is_the_greedy_choice_however_the_list_is_cut(
    points: list[Point], budgets: Budgets, batch: int
) -> None:
    assert gone(points, budgets, batch)[0] == greedy(points, budgets)


@SEEDED
@given(POINTS, BUDGETS)
def test_no_budget_is_ever_exceeded(points: list[Point], budgets: Budgets) -> None:
    taken, outcome = gone(points, budgets)
    assert len(taken) <= max(0, outcome.limit)
    stays = [p for i, p in enumerate(points) if p.in_train and i not in taken]
    assert not taken or len(stays) >= budgets.minimum_kept
    for label in {points[i].label for i in taken} - {None}:
        mine = [p for p in points if p.label == label]
        out = sum(not p.in_train or p.relabeled for p in mine) + sum(points[i].label == label for i in taken)
        assert out <= budgets.per_class * len(mine) + 1e-9
        assert len(mine) - out >= budgets.minimum_per_class
    for group in {points[i].group for i in taken} - {None}:
        mine = [p for p in points if p.group == group]
        out = sum(not p.in_train or p.relabeled for p in mine) + sum(points[i].group == group for i in taken)
        assert out <= budgets.per_group * len(mine) + 1e-9


@pytest.mark.parametrize(
    "points",
    [
        [Point(0, None)] * 9,
        [Point(None, None)] * 9,
        [Point(None, "a")] * 9,
        [Point(0, "a", candidate=False)] * 9,
        [Point(0, "a", in_train=False)] * 9,
        [Point(0, "a", in_train=False)] * 8 + [Point(0, "a")],
        [Point(label, None) for label in range(9)],
    ],
)
def test_tables_of_one_kind_are_walked_like_any_other(points: list[Point]) -> None:
    for share in (0.05, 0.5, 1.0):
        budgets = Budgets(1.0, 1.0, share, per_group=share)
        assert gone(points, budgets)[0] == greedy(points, budgets)


def test_what_a_full_class_refuses_costs_its_group_nothing() -> None:
    points = [Point(0, "a")] * 4 + [Point(1, "a")] * 4  # one may go of each label, two of the group
    taken, outcome = gone(points, Budgets(1.0, 1.0, 0.25, per_group=0.25))
    assert taken == [0, 4]
    assert outcome.refused == ("per_class", "per_class")


def test_a_budget_of_no_point_takes_none_and_says_which() -> None:
    points = [Point(0, None)] * 9
    for name in ("cycle", "cumulative"):
        taken, outcome = gone(points, replace(Budgets(1.0, 1.0, 1.0), **{name: 0.1}))
        assert (taken, outcome.limit, outcome.last, outcome.binding) == ([], 0, 0, name)
    spent = [Point(0, None, in_train=False)] * 5 + [Point(0, None)] * 5
    assert gone(spent, Budgets(1.0, 0.5, 1.0))[0] == []


def test_a_relabeling_of_an_earlier_cycle_counts_under_the_label_that_was_given() -> None:
    points = [Point(0, None, relabeled=True)] * 3 + [Point(0, None)] * 5
    assert len(gone(points, Budgets(1.0, 1.0, 0.5))[0]) == 1, "of 8, four may be spent, and three are"
    assert len(gone(points, Budgets(1.0, 1.0, 1.0, minimum_per_class=4))[0]) == 1


@pytest.mark.parametrize("shares", [(0, 1, 1, 1), (1, 1, 1, 0), (1, 1, 1, float("nan"))])
def test_a_share_outside_its_range_is_refused(shares: tuple[float, float, float, float]) -> None:
    with pytest.raises(InvalidBudget, match="above 0 and at most 1"):
        Budgets(*shares[:3], per_group=shares[3])
    with pytest.raises(InvalidBudget, match="minimum_per_class = -1"):
        Budgets(1, 1, 1, minimum_per_class=-1)
