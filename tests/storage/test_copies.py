"""Which points repeat others, and what a rule that takes them leaves."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from storage.copies import originals
from storage.points import Manifest
from storage.policies import Regret, Rule, policy_json, reason_code
from storage.selection import select
from tests.storage.score_tables import ALL, HARMFUL, Row, write

SPARE = Rule("redundant", "redundant", "suspicion", "<=", 0.5, rank_column="suspicion", turn=1, repeats="repeats")
BALANCED = Rule("balanced", "balanced", "balance", "<=", 0.5, rank_column="balance", turn=2)


def found(inputs: str, labels: list[int], in_train: list[bool] | None = None, groups: str = "") -> list[int]:
    """Of each point the place of what it repeats; inputs and groups by one letter a point, "-" for no group."""
    ids = list(range(10, 10 + len(inputs)))
    named = [None if letter == "-" else letter for letter in groups or "-" * len(ids)]
    manifest = Manifest.build(ids, map(str, ids), inputs, [0] * len(ids), named)
    trained = np.array(in_train or [True] * len(ids))
    return originals(manifest, np.array(labels), trained).tolist()


def test_every_copy_repeats_the_point_of_the_smallest_id_and_that_one_nothing() -> None:
    assert found("abacbaa", [0, 1, 0, 2, 1, 0, 0]) == [-1, -1, 0, -1, 1, 0, 0]


def test_the_first_is_the_smallest_id_in_whatever_order_the_points_are_given() -> None:
    manifest = Manifest.build([30, 7, 12], "xyz", "aaa", [1, 1, 1])
    assert originals(manifest, np.ones(3, dtype=np.int64), np.ones(3, dtype=bool)).tolist() == [-1, 0, 0]


def test_where_labels_of_the_same_inputs_differ_nobody_is_a_copy() -> None:
    assert found("aaabb", [0, 0, 1, 3, 3]) == [-1, -1, -1, -1, 3]


def test_a_point_of_another_group_is_no_copy_and_no_group_is_one() -> None:
    assert found("aaaaaa", [0] * 6, groups="x-yx-y") == [-1, -1, -1, 0, 1, 2]


def test_points_out_of_training_repeat_those_in_training_and_neither_dispute_nor_stand_for_them() -> None:
    assert found("aaa", [0, 0, 0], [False, True, True]) == [1, -1, 1]
    assert found("aaa", [1, 0, 0], [False, True, True]) == [-1, -1, 1]
    assert found("ab", [0, 0], [False, True]) == [-1, -1]


@pytest.mark.parametrize("kind", [int, str])
def test_the_reason_names_what_a_copy_repeats(tmp_path: Path, kind: type) -> None:
    rows = [Row(kind(1), 1.0, suspicion=0.1), Row(kind(2), 1.0, suspicion=0.2, repeats=kind(1)), Row(kind(3), 1.0)]
    write(tmp_path, [*rows, Row(kind(4), -1.0, suspicion=0.3, repeats=kind(3)), Row(kind(5), -1.0)])
    made = select(tmp_path, [HARMFUL, SPARE], ALL).rows
    assert dict(zip(made["point_id"].to_pylist(), made["reason"].to_pylist(), strict=True)) == {
        kind(1): "redundant",
        kind(2): "redundant: copy of 1",
        kind(4): "harmful+redundant: copy of 3",
        kind(5): "harmful",
    }
    assert [reason_code(reason) for reason in made["reason"].to_pylist()[1:3]] == ["redundant", "harmful+redundant"]


def test_a_copy_stays_where_another_rule_takes_what_it_repeats(tmp_path: Path) -> None:
    taken = Row(1, -1.0)
    rows = [taken, Row(2, 1.0, suspicion=0.1, repeats=1), Row(3, 1.0), Row(4, 1.0, suspicion=0.1, repeats=3)]
    made = select(write(tmp_path, rows), [HARMFUL, SPARE], ALL)
    assert (made.rows["point_id"].to_pylist(), made.candidates) == ([1, 4], {"harmful": 1, "redundant": 1})
    both = [taken, Row(2, -1.0, suspicion=0.1, repeats=1), Row(3, 1.0)]
    made = select(write(tmp_path / "both", both), [HARMFUL, SPARE], ALL)
    assert made.rows["reason"].to_pylist() == ["harmful", "harmful"]


def test_a_copy_that_only_a_later_rule_still_chooses_goes_in_the_turn_and_by_the_rank_of_that_rule(
    tmp_path: Path,
) -> None:
    rows = [
        Row(1, -1.0),
        Row(2, 1.0, suspicion=0.01, repeats=1, balance=0.3),
        Row(3, 1.0, suspicion=0.1),
        Row(4, 1.0, suspicion=0.2, balance=0.1),
        Row(5, 1.0, balance=0.2),
        Row(6, 1.0, balance=0.4),
        Row(7, -2.0, suspicion=0.02, repeats=1, balance=0.1),
        Row(8, 9.0),
    ]
    made = select(write(tmp_path, rows), [BALANCED, SPARE, HARMFUL], ALL).rows.sort_by("rank")
    assert list(zip(made["point_id"].to_pylist(), made["reason"].to_pylist(), strict=True)) == [
        (7, "balanced+harmful"),
        (1, "harmful"),
        (3, "redundant"),
        (4, "balanced+redundant"),
        (5, "balanced"),
        (2, "balanced"),
        (6, "balanced"),
    ]
    within = select(tmp_path, [BALANCED, SPARE, HARMFUL], replace(ALL, cycle=5 / 8)).rows
    assert within["point_id"].to_pylist() == [1, 3, 4, 5, 7], "the budget ends before the copy's turn"


def test_a_copy_that_is_missed_comes_back_only_where_no_rule_would_take_it_again(tmp_path: Path) -> None:
    rows = [Row(1, 1.0), Row(2, 9.0, in_train=False, repeats=1), Row(3, 9.0, in_train=False)]
    for folder in ("now", "before"):
        write(tmp_path / folder, rows)
    regret = Regret(tmp_path / "before", 3.0)
    back = {
        len(rules): select(tmp_path / "now", rules, ALL, regret).rows["point_id"].to_pylist()
        for rules in ([HARMFUL], [HARMFUL, SPARE])
    }
    assert back == {1: [2, 3], 2: [3]}


def test_looking_for_copies_changes_no_hash_of_a_policy() -> None:
    assert policy_json([SPARE], ALL) == policy_json([replace(SPARE, repeats=None)], ALL)
