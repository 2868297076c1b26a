"""Budgets hold, ties are broken by point_id, and the order of shards does not matter."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.budgets import Budgets
from storage.errors import InvalidBudget, ScoresInvalid, StorageError
from storage.policies import Rule, policy_json
from storage.proposals import Proposal
from storage.selection import rows_of, select, top
from tests.storage.score_tables import ALL, HARMFUL, MISLABELED, Row, chosen, write


def test_one_rank_orders_the_candidates_of_all_policies(tmp_path: Path) -> None:
    # the most suspicious points are helpful (+0.4 and more): they may go, but after every harmful one
    harmful = [Row(i, -i / 10) for i in range(1, 5)]
    suspect = [Row(10 + i, 0.4 + i, suspicion=1000.0 - i) for i in range(5)] + [Row(20, -0.25, suspicion=0.6)]
    write(tmp_path, harmful + suspect)
    made = select(tmp_path, [HARMFUL, MISLABELED], Budgets(0.6, 1.0, 1.0))
    rank = dict(zip(made.rows["point_id"].to_pylist(), made.rows["rank"].to_pylist(), strict=True))
    assert rank == {4: 1, 3: 2, 20: 3, 2: 4, 1: 5, 10: 6}
    assert made.candidates == {"harmful": 5, "mislabeled": 6}
    assert made.dropped == {
        "protected": 0, "cooldown": 0, "per_class": 0, "per_group": 0, "minimum_per_class": 0, "cycle": 4,
        "cumulative": 0, "minimum_kept": 0,
    }  # fmt: skip
    assert (made.points, made.in_train, made.limit) == (10, 10, 6)


def test_the_class_cap_takes_the_smallest_rank_whichever_policy_chose_the_point(tmp_path: Path) -> None:
    write(tmp_path, [Row(1, 0.4, suspicion=0.9), Row(2, -0.8), Row(3, -0.1), Row(4, 9.0)])
    assert chosen(tmp_path, [MISLABELED, HARMFUL], Budgets(1.0, 1.0, 0.5)) == [2, 3]


def test_another_column_may_rank_and_its_nulls_come_last(tmp_path: Path) -> None:
    write(tmp_path, [Row(1, -9.0), Row(2, -1.0, suspicion=0.9), Row(3, -1.0, suspicion=0.1)])
    ranks = select(tmp_path, [replace(HARMFUL, rank_column="suspicion")], ALL).rows
    assert ranks["point_id"].to_pylist() == [2, 3], "of three points one always stays"
    assert ranks["rank"].to_pylist() == [2, 1]


def test_a_point_chosen_by_two_policies_carries_both_and_the_score_of_the_first_rule(tmp_path: Path) -> None:
    write(tmp_path, [Row(1, -3.0), Row(2, -2.0, suspicion=0.9), Row(3, -1.0)])
    evidence = [
        {"policy": "harmful", "column": "influence", "value": -2.0, "threshold": 0.0},
        {"policy": "mislabeled", "column": "suspicion", "value": 0.9, "threshold": 0.5},
    ]
    for rules in ([HARMFUL, MISLABELED], [MISLABELED, HARMFUL]):
        row = select(tmp_path, rules, ALL).rows.to_pylist()[1]
        assert (row["point_id"], row["action"], row["reason"]) == (2, "remove", "harmful+mislabeled")
        assert row["rank"] == 2
        assert row["evidence"] == evidence
        assert (row["score"], row["threshold"]) == (evidence[0]["value"], evidence[0]["threshold"])
        assert row["policies"] == [entry["policy"] for entry in evidence]
        evidence.reverse()


def test_ties_are_broken_by_point_id_whatever_the_order_of_the_shards(tmp_path: Path) -> None:
    points = list(range(40))
    for seed in range(3):
        random.Random(seed).shuffle(points)
        folder = write(tmp_path / str(seed), [Row(p, -1.0) for p in points], chunk=7)
        assert chosen(folder, [HARMFUL], Budgets(0.25, 1.0, 1.0)) == list(range(10))
    strings = write(tmp_path / "strings", [Row(p, -1.0) for p in ["b", "10", "9", "a"]])
    assert chosen(strings, [HARMFUL], Budgets(0.5, 1.0, 1.0)) == ["10", "9"]


def test_the_cumulative_budget_counts_what_was_removed_before(tmp_path: Path) -> None:
    rows = [Row(i, -1.0 - i) for i in range(6)] + [Row(10 + i, -99.0, in_train=False) for i in range(4)]
    write(tmp_path, rows)
    made = select(tmp_path, [HARMFUL], Budgets(1.0, 0.6, 1.0))
    assert made.rows["point_id"].to_pylist() == [4, 5], (
        "60 % of 10 points, 4 of them gone already, and those never again"
    )
    assert made.dropped["cumulative"] == 4
    assert chosen(tmp_path, [HARMFUL], Budgets(1.0, 0.3, 1.0)) == [], "an overspent budget allows nothing"


def test_the_class_cap_counts_by_given_label_and_includes_earlier_removals(tmp_path: Path) -> None:
    worst = [Row(i, -100.0, label=0) for i in range(8)] + [
        Row(8, -1.0, 0, in_train=False),
        Row(9, -1.0, 0, in_train=False),
    ]
    others = [Row(10 + i, -1.0, label=1) for i in range(4)] + [Row(20, -1.0, label=None)]
    write(tmp_path, worst + others)
    made = select(tmp_path, [HARMFUL], Budgets(1.0, 1.0, 0.5))
    assert made.rows["point_id"].to_pylist() == [0, 1, 2, 10, 11, 20], (
        "half of 10 minus 2, half of 4, no cap without label"
    )
    assert made.dropped["per_class"] == 7


def test_what_the_class_cap_refuses_leaves_its_room_to_other_classes(tmp_path: Path) -> None:
    write(tmp_path, [Row(i, -100.0 + i, label=0) for i in range(10)] + [Row(10 + i, -1.0, label=1) for i in range(10)])
    got = chosen(tmp_path, [HARMFUL], Budgets(0.3, 1.0, 0.2))
    assert got == [0, 1, 10, 11], "capped at 2 per class, although the cycle would allow 6"


def test_protected_points_and_cooldown_leave_before_ranks_and_budgets(tmp_path: Path) -> None:
    write(tmp_path, [Row(i, -10.0 + i) for i in range(6)])
    budgets = Budgets(0.34, 1.0, 1.0, protected=frozenset({0, 1, 77}), cooldown=frozenset({1, 2}))
    made = select(tmp_path, [HARMFUL], budgets)
    assert made.rows["point_id"].to_pylist() == [3, 4]
    assert made.rows["rank"].to_pylist() == [1, 2]
    assert (made.dropped["protected"], made.dropped["cooldown"], made.dropped["cycle"]) == (2, 1, 1)


def test_a_minimum_is_kept_whatever_the_shares_say(tmp_path: Path) -> None:
    write(tmp_path, [Row(i, -1.0) for i in range(5)])
    assert chosen(tmp_path, [HARMFUL], Budgets(1.0, 1.0, 1.0, minimum_kept=3)) == [0, 1]
    assert chosen(tmp_path, [HARMFUL], ALL) == [0, 1, 2, 3], "the last point always stays"
    assert chosen(tmp_path, [HARMFUL], Budgets(1.0, 1.0, 1.0, minimum_kept=9)) == []


def test_a_share_that_floats_miss_by_one_bit_is_not_rounded_down(tmp_path: Path) -> None:
    assert 0.29 * 100 < 29
    write(tmp_path, [Row(i, -1.0) for i in range(100)], chunk=100)
    assert len(chosen(tmp_path, [HARMFUL], Budgets(0.29, 1.0, 1.0))) == 29
    assert len(chosen(tmp_path, [HARMFUL], Budgets(1.0, 1.0, 0.29))) == 29


def test_nothing_passes_and_null_never_passes(tmp_path: Path) -> None:
    write(tmp_path, [Row(1, 0.0), Row(2, 5.0)])
    made = select(tmp_path, [HARMFUL, MISLABELED], ALL)
    assert made.rows.num_rows == 0
    assert made.candidates == {"harmful": 0, "mislabeled": 0}
    assert Proposal.build(1, made, "d", "s", policy_json([HARMFUL], ALL)).size == 0


def test_random_tables_agree_with_a_greedy_choice_in_plain_python(tmp_path: Path) -> None:
    for seed in range(8):
        draw = random.Random(seed)
        rows = [
            Row(
                i,
                draw.choice([-3.0, -2.0, -1.0, 1.0]),
                draw.choice([0, 1, 2, None]),
                draw.random(),
                draw.random() < 0.8,
            )
            for i in range(60)
        ]
        protected = frozenset(draw.sample(range(60), 5))
        budgets = Budgets(draw.uniform(0.05, 0.6), draw.uniform(0.2, 1.0), draw.uniform(0.1, 0.8), 10, protected)
        draw.shuffle(rows)
        assert chosen(write(tmp_path / str(seed), rows, 9), [HARMFUL, MISLABELED], budgets) == greedy(rows, budgets)


def greedy(rows: Sequence[Row], budgets: Budgets) -> list[int | str]:
    """The definition: walk the candidates by influence, take a point if its class and the totals still have room."""
    free = [row for row in rows if row.in_train and row.point not in budgets.protected]
    ranked = sorted((row.influence, row.point) for row in free if row.influence < 0 or (row.suspicion or 0) >= 0.5)
    label = {row.point: row.label for row in rows}
    size, gone = Counter(label.values()), Counter(row.label for row in rows if not row.in_train)
    in_train, removed = sum(row.in_train for row in rows), sum(not row.in_train for row in rows)
    total = min(
        int(budgets.cycle * in_train), int(budgets.cumulative * len(rows)) - removed, in_train - budgets.minimum_kept
    )
    taken: list[int | str] = []
    for _, point in ranked:
        y = label[point]
        room = y is None or gone[y] < int(budgets.per_class * size[y])
        if room and len(taken) < total:
            taken.append(point)
            gone[y] += 1
    return sorted(taken)  # type: ignore[type-var]


@pytest.mark.parametrize("shares", [(0, 1, 1), (1.01, 1, 1), (1, -0.1, 1), (1, 1, 0), (float("nan"), 1, 1)])
def test_a_budget_outside_its_range_is_refused(shares: tuple[float, float, float]) -> None:
    with pytest.raises(InvalidBudget, match="above 0 and at most 1"):
        Budgets(*shares)
    with pytest.raises(InvalidBudget, match="minimum_kept"):
        Budgets(1, 1, 1, 0)


def test_an_unknown_column_or_no_policy_is_one_line(tmp_path: Path) -> None:
    write(tmp_path, [Row(1, -1.0)])
    with pytest.raises(ScoresInvalid, match="no column nope; they have point_id"):
        select(tmp_path, [Rule("p", "p", "nope", "<", 0.0)], ALL)
    for rules in ([], [HARMFUL, HARMFUL]):
        with pytest.raises(StorageError, match="at least one policy"):
            select(tmp_path, rules, ALL)


def test_names_and_paths_are_not_read_as_sql_or_globs(tmp_path: Path) -> None:
    folder = write(tmp_path / "a [1]*'x", [Row(1, -1.0), Row(2, 1.0)])
    evil = Rule("p'; DROP TABLE scores; --", "r'", "influence", "<", 0.0)
    assert select(folder, [evil], Budgets(1, 1, 1)).rows["reason"].to_pylist() == ["r'"]
    assert [path.name for path in folder.iterdir()] == ["part-r000-c00000.parquet"], "nothing is left beside the shards"


def test_top_and_rows_of_are_ordered_and_leave_out_removed_points_and_nulls(tmp_path: Path) -> None:
    rows = [
        Row(3, 1.0, suspicion=0.5),
        Row(1, 2.0, suspicion=0.5),
        Row(2, 3.0),
        Row(4, 0.0, suspicion=9.0, in_train=False),
    ]
    write(tmp_path, rows)
    assert top(tmp_path, "suspicion", 9, columns=["influence"]).to_pydict() == {
        "point_id": [1, 3],
        "influence": [2.0, 1.0],
    }
    assert top(tmp_path, "influence", 2)["point_id"].to_pylist() == [2, 1]
    assert rows_of(tmp_path, [4, 1, 77], ["influence"]).to_pydict() == {"point_id": [1, 4], "influence": [2.0, 0.0]}


def test_ranks_follow_the_rank_column_in_tables_of_many_row_groups(tmp_path: Path) -> None:
    count, draw = 300_000, np.random.default_rng(0)
    table = pa.table(
        {
            "point_id": draw.permutation(count),
            "in_train": np.ones(count, dtype=bool),
            "influence": -1 - np.round(draw.random(count), 4),  # thirty ties of each
        }
    )
    pq.write_table(table, tmp_path / "part-r000-c00000.parquet", row_group_size=20_000)
    rows = select(tmp_path, [HARMFUL], Budgets(0.9, 1.0, 1.0)).rows.sort_by("rank")
    found = list(zip(rows["score"].to_pylist(), rows["point_id"].to_pylist(), strict=True))
    assert rows["rank"].to_pylist() == list(range(1, 270_001))
    assert found == sorted(found)
    influence = dict(zip(table["point_id"].to_pylist(), table["influence"].to_pylist(), strict=True))
    assert found[-1][0] <= min(influence[point] for point in influence.keys() - {point for _, point in found})
