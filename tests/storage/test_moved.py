"""The difference of two manifests: which points moved, how, and what had been decided on them."""

from collections.abc import Mapping
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from storage.moved import Moved, compare
from storage.points import Manifest, PointId

Points = Mapping[PointId, tuple[str, str, int]]
BEFORE: Points = {i: (f"c{i}", f"i{i}", i % 2) for i in range(10)}
AFTER: Points = {i: BEFORE[i] for i in range(2, 10)} | {
    2: ("c2 mended", "i2", 1),
    3: ("c3 other", "i3 other", 1),
    20: ("c20", "i20", 0),
    21: ("c21", "i21", 0),
}


def manifest(points: Points, kind: type[int] | type[str] = int) -> Manifest:
    content, inputs, labels = zip(*points.values())
    return Manifest.build(map(kind, points), content, inputs, labels)


def moved(removed: Mapping[PointId, str] = {}, relabeled: Mapping[PointId, str] = {}) -> Moved:
    return compare(manifest(BEFORE), manifest(AFTER), removed, relabeled)


@pytest.mark.parametrize("kind", [int, str])
def test_new_changed_and_vanished_points_are_told_apart(kind: type[int] | type[str]) -> None:
    rows = compare(manifest(BEFORE, kind), manifest(AFTER, kind), {}, {}).rows.to_pylist()
    found = {row["point_id"]: (row["change"], row["label_before"], row["label_after"]) for row in rows}
    expected = {
        0: ("vanished", 0, None),
        1: ("vanished", 1, None),
        2: ("label", 0, 1),
        3: ("inputs", 1, 1),
        20: ("new", None, 0),
        21: ("new", None, 0),
    }
    assert found == {kind(point): change for point, change in expected.items()}
    assert {(row["decided"], row["holds"]) for row in rows} == {(None, None)}
    assert [row["point_id"] for row in rows] == sorted(found)


def test_a_decision_ends_with_the_content_it_was_taken_on_and_holds_again_with_it() -> None:
    removed: Mapping[PointId, str] = {0: "c0", 2: "c2", 3: "c3 other", 4: "c4", 20: "c20", 21: "before that"}
    found = moved(removed, {1: "c1"})
    rows = {row["point_id"]: (row["decided"], row["holds"]) for row in found.rows.to_pylist()}
    assert rows == {
        0: ("remove", False),
        1: ("relabel", False),
        2: ("remove", False),
        3: ("remove", True),
        20: ("remove", True),
        21: (None, None),
    }
    assert found.count("label", decided="remove") == 1
    assert found.count("vanished", decided="remove") == found.count("vanished", decided="relabel") == 1
    assert found.count("inputs", decided="remove") == 0
    assert found.count("new", "inputs", decided="remove", holds=True) == 2


def test_a_point_in_another_group_moves_and_what_was_decided_on_it_stands() -> None:
    def grouped(groups: list[str | None], content: str = "abcdef") -> Manifest:
        return Manifest.build(range(6), content, content, [0] * 6, groups)

    before = grouped(["x", "x", None, None, "x", "x"])
    found = compare(before, grouped(["x", "y", "y", None, None, "y"], "abcdeg"), {1: "b"}, {2: "c", 5: "f"})
    rows = [
        tuple(row[name] for name in ("point_id", "change", "group_before", "group_after", "decided", "holds"))
        for row in found.rows.to_pylist()
    ]
    assert rows == [
        (1, "group", "x", "y", None, None),
        (2, "group", None, "y", None, None),
        (4, "group", "x", None, None, None),
        (5, "inputs", "x", "y", "relabel", False),
    ]
    assert (found.detail["group"], found.detail["by_class"]) == (3, {"0": {"group": 3, "inputs": 1}})


def test_the_ledger_is_told_counts_by_change_and_class_and_a_hash_of_the_list() -> None:
    detail = moved({0: "c0"}).detail
    assert [detail[change] for change in ("new", "label", "inputs", "vanished")] == [2, 1, 1, 2]
    assert detail["by_class"] == {"0": {"new": 2, "vanished": 1}, "1": {"label": 1, "inputs": 1, "vanished": 1}}
    assert detail["decided"] == {"remove, holds no more": 1}
    other = compare(manifest(BEFORE), manifest({**AFTER, 22: ("c22", "i22", 0)}), {}, {}).detail
    assert len({str(one["sha256"]) for one in (detail, moved().detail, other)}) == 3


def test_nothing_moves_between_equal_manifests_and_the_list_is_kept(tmp_path: Path) -> None:
    assert compare(manifest(BEFORE), manifest(BEFORE), {1: "c1"}, {}).rows.num_rows == 0
    moved().write(tmp_path / "moved.parquet")
    assert pq.read_table(tmp_path / "moved.parquet").equals(moved().rows)
