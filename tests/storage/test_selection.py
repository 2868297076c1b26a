"""Budgets hold, ties are broken by point_id, and the order of shards does not matter."""

import json
import random
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import score_store
from storage.budgets import Budgets
from storage.errors import InvalidBudget, ScoresInvalid, StorageError
from storage.policies import Condition, Regret, Rule, policy_json
from storage.proposals import Proposal
from storage.selection import rows_of, select, top

METADATA = score_store.ScoreMetadata(1, "ekfac", ["fc"], None, "checkpoint", "inputs")
HARMFUL = Rule("harmful", "harmful", "influence", "<", 0.0, parameters={"q": 0.2})
MISLABELED = Rule("mislabeled", "mislabeled", "suspicion", ">=", 0.5)
ALL = Budgets(1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Row:
    point: int | str
    influence: float
    label: int | None = 0
    suspicion: float | None = None
    in_train: bool = True
    group: str | None = None
    suggested: int = 0


def write(folder: Path, rows: Sequence[Row], chunk: int = 4) -> Path:
    for c, start in enumerate(range(0, len(rows), chunk)):
        part = rows[start : start + chunk]
        table = pa.table(
            {
                "point_id": [row.point for row in part],
                "cycle": [1] * len(part),
                "in_train": [row.in_train for row in part],
                "loss": [0.0] * len(part),
                "influence": [row.influence for row in part],
                "influence_se": [0.1] * len(part),
                "self_influence": [0.0] * len(part),
                "label": pa.array([row.label for row in part], pa.int32()),
                "suspicion": pa.array([row.suspicion for row in part], pa.float64()),
                "group": pa.array([row.group for row in part], pa.string()),
                "suggested": pa.array([row.suggested for row in part], pa.int32()),
            }
        )
        score_store.write_chunk(folder, 0, c, table, METADATA)
    return folder


def chosen(folder: Path, rules: Sequence[Rule], budgets: Budgets) -> list[int | str]:
    rows: list[int | str] = select(folder, rules, budgets).rows["point_id"].to_pylist()
    return rows


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


def test_a_relabeling_goes_where_the_suggested_label_is_another_and_a_removal_else(tmp_path: Path) -> None:
    rows = [Row(1, 1.0, 0, 0.9, suggested=2), Row(2, 1.0, 0, 0.9, suggested=0), Row(3, -1.0, 1, suggested=2)]
    rows += [Row(4, -1.0, 1, 0.9, suggested=0), Row(5, 9.0)]
    write(tmp_path, rows)
    relabel = replace(MISLABELED, relabel="suggested")
    made = select(tmp_path, [HARMFUL, relabel], ALL).rows
    assert list(zip(*(made[name].to_pylist() for name in ("point_id", "action", "new_label")), strict=True)) == [
        (1, "relabel", 2),
        (2, "remove", None),
        (3, "remove", None),
        (4, "relabel", 0),
    ]
    assert made["reason"].to_pylist() == ["mislabeled", "mislabeled", "harmful", "harmful+mislabeled"]


def test_a_relabeling_counts_against_the_budget_of_the_given_label(tmp_path: Path) -> None:
    write(tmp_path, [Row(i, float(i), 0, 0.9, suggested=1) for i in range(6)] + [Row(9, 0.0, 1), Row(10, 0.0, 1)])
    relabel = replace(MISLABELED, relabel="suggested")
    assert chosen(tmp_path, [relabel], Budgets(1.0, 1.0, 0.5)) == [0, 1, 2]
    assert chosen(tmp_path, [relabel], Budgets(0.25, 1.0, 1.0)) == [0, 1]
    assert chosen(tmp_path, [relabel], Budgets(1.0, 0.125, 1.0)) == [0]
    relabelled = {9: 0}  # it was given label 0, of which one of 7 is therefore spent
    made = select(tmp_path, [relabel], Budgets(1.0, 1.0, 0.5, relabeled=relabelled))
    assert made.rows["point_id"].to_pylist() == [0, 1]
    assert chosen(tmp_path, [relabel], Budgets(1.0, 0.25, 1.0, relabeled=relabelled)) == [0]


def test_what_was_relabelled_before_may_change_its_label_again_or_go(tmp_path: Path) -> None:
    others = [Row(10, 9.0, 2), Row(11, 9.0, 7)]
    write(tmp_path, [Row(1, 1.0, 5, 0.9, suggested=2), Row(2, 1.0, 5, 0.9, suggested=5), *others])
    relabel = replace(MISLABELED, relabel="suggested")
    made = select(tmp_path, [relabel], Budgets(1.0, 1.0, 1.0, relabeled={1: 2, 2: 7})).rows
    assert made["new_label"].to_pylist() == [2, None]
    assert made["action"].to_pylist() == ["relabel", "remove"], "the label in force is the one that it is compared with"


def test_a_condition_besides_keeps_points_that_fail_it_and_those_without_a_value(tmp_path: Path) -> None:
    write(tmp_path, [Row(1, -1.0, suspicion=0.5), Row(2, -1.0, suspicion=0.4), Row(3, -1.0), Row(4, 1.0)])
    stable = replace(HARMFUL, also=(Condition("suspicion", ">=", 0.5),))
    assert chosen(tmp_path, [stable], ALL) == [1]


def test_a_later_turn_takes_what_the_earlier_ones_leave_by_a_rank_of_its_own(tmp_path: Path) -> None:
    rows = [Row(1, -0.1), Row(2, 5.0, suspicion=0.5), Row(3, 7.0, suspicion=0.6), Row(4, -9.0, suspicion=0.9)]
    write(tmp_path, [*rows, Row(5, 9.0)])
    later = replace(MISLABELED, rank_column="suspicion", turn=1)
    made = select(tmp_path, [later, HARMFUL], Budgets(0.6, 1.0, 1.0)).rows
    assert dict(zip(made["point_id"].to_pylist(), made["rank"].to_pylist(), strict=True)) == {1: 2, 2: 3, 4: 1}


def test_groups_have_caps_and_a_protected_group_is_left_alone(tmp_path: Path) -> None:
    names = ["a", "b'\"", "é", None]
    write(tmp_path, [Row(i, -1.0, group=names[i % 4]) for i in range(16)])
    made = select(tmp_path, [HARMFUL], Budgets(1.0, 1.0, 1.0, per_group=0.25, protected_groups=frozenset({"b'\""})))
    assert made.rows["point_id"].to_pylist() == [0, 2, 3, 7, 11, 15]
    assert (made.dropped["per_group"], made.dropped["protected"]) == (6, 4)
    everything = Budgets(1.0, 1.0, 1.0, protected_groups=frozenset(name for name in names if name))
    assert chosen(tmp_path, [HARMFUL], everything) == [3, 7, 11, 15], "a point without a group is in none"


def test_a_table_without_labels_and_groups_has_totals_alone(tmp_path: Path) -> None:
    write(tmp_path / "s", [Row(i, -1.0) for i in range(8)])
    for path in (tmp_path / "s").iterdir():
        pq.write_table(pq.read_table(path).drop_columns(["label", "group"]), path)
    assert chosen(tmp_path / "s", [HARMFUL], Budgets(0.5, 1.0, 0.01, per_group=0.01)) == [0, 1, 2, 3]


def test_every_candidate_may_be_protected(tmp_path: Path) -> None:
    write(tmp_path, [Row(i, -1.0) for i in range(5)])
    made = select(tmp_path, [HARMFUL], Budgets(1.0, 1.0, 1.0, protected=frozenset(range(5))))
    assert (made.rows.num_rows, made.dropped["protected"]) == (0, 5)


IDS = [[2**63 - 1, -(2**63), 0, 7], ["it's", '"', "日本", "a\nb"]]


@pytest.mark.parametrize("ids", IDS)
def test_ids_at_the_end_of_their_range_are_ids_like_others(tmp_path: Path, ids: list[int | str]) -> None:
    write(tmp_path, [Row(point, -1.0) for point in ids])
    made = select(
        tmp_path, [HARMFUL], Budgets(1.0, 1.0, 1.0, protected=frozenset(ids[:1]), cooldown=frozenset(ids[1:2]))
    )
    assert made.rows["point_id"].to_pylist() == sorted(ids[2:])  # type: ignore[type-var]
    assert len(Proposal.build(1, made, "d", "s", {}).hash) == 64


def returning(tmp_path: Path) -> tuple[Path, Path]:
    """Scores of two cycles; 0.1 is the standard error of all."""
    before = [Row(1, 0.5, in_train=False), Row(2, 0.2, in_train=False), Row(3, 0.5), Row(4, 0.9, in_train=False)]
    now = [Row(1, 0.4, in_train=False), Row(2, 0.9, in_train=False), Row(3, 0.9, in_train=False)]
    now += [Row(4, 0.3, in_train=False), Row(5, -1.0), Row(6, 1.0)]
    return write(tmp_path / "before", before), write(tmp_path / "now", now)


def test_a_removed_point_comes_back_if_it_is_helpful_in_two_cycles_running(tmp_path: Path) -> None:
    before, now = returning(tmp_path)
    made = select(now, [HARMFUL], Budgets(0.01, 1.0, 1.0), Regret(before, 3.0))
    [row] = made.rows.to_pylist()  # 2 was not before, 3 was in training then, 4 is at the bar but not beyond it
    assert (row["point_id"], row["action"], row["reason"], row["rank"]) == (1, "restore", "regret", None)
    assert (row["score"], row["threshold"]) == (0.4, pytest.approx(0.3))
    assert [(entry["value"], entry["column"]) for entry in row["evidence"]] == [
        (0.4, "influence"),
        (0.5, "influence of the cycle before"),
    ]
    assert made.dropped["cycle"] == 1, "a restoration is within no budget"


def test_a_proposal_may_mix_actions_and_a_cooldown_holds_for_restorations(tmp_path: Path) -> None:
    before, now = returning(tmp_path)
    both = select(now, [HARMFUL], ALL, Regret(before, 1.5)).rows
    assert dict(zip(both["point_id"].to_pylist(), both["action"].to_pylist(), strict=True)) == {
        1: "restore", 2: "restore", 4: "restore", 5: "remove",
    }  # fmt: skip
    assert Proposal.build(1, select(now, [HARMFUL], ALL, Regret(before, 1.5)), "d", "s", {}).actions == {
        "remove": 1,
        "restore": 3,
    }
    cool = replace(ALL, cooldown=frozenset({1, 4}), protected=frozenset({2}))
    kept = select(now, [HARMFUL], cool, Regret(before, 1.5)).rows
    assert kept["point_id"].to_pylist() == [2, 5], "a protected point that is out may come back"
    policies = [policy_json([HARMFUL], ALL, regret) for regret in (None, Regret(before, 1.5), Regret(before, 3.0))]
    assert len({json.dumps(policy) for policy in policies}) == 3


TABLES = st.lists(
    st.builds(
        Row,
        point=st.just(0),
        influence=st.sampled_from([-2.0, -1.0, 0.0]),
        label=st.sampled_from([None, 0, 1]),
        suspicion=st.sampled_from([None, 0.1, 0.9]),
        in_train=st.just(True) | st.booleans(),
        group=st.sampled_from([None, "a", "it's"]),
        suggested=st.sampled_from([0, 1]),
    ),
    min_size=1,
    max_size=25,
)
LIMITS = st.builds(
    Budgets,
    cycle=st.sampled_from([0.1, 0.5, 1.0]),
    cumulative=st.sampled_from([0.3, 1.0]),
    per_class=st.sampled_from([0.3, 1.0]),
    per_group=st.sampled_from([0.3, 1.0]),
    protected=st.frozensets(st.integers(0, 24), max_size=4),
)


@settings(deadline=None, derandomize=True, max_examples=15)
@given(TABLES, LIMITS, st.integers(1, 9), st.randoms(use_true_random=False))
def test_the_order_of_the_rows_and_the_threads_change_nothing(
    rows: list[Row], budgets: Budgets, chunk: int, draw: random.Random
) -> None:
    rows = [replace(row, point=i) for i, row in enumerate(rows)]
    rules, mixed = [HARMFUL, replace(MISLABELED, relabel="suggested")], draw.sample(rows, len(rows))
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        one = select(write(Path(folder) / "one", rows), rules, budgets)
        patch.setattr("storage.score_sql.duckdb.connect", partial(duckdb.connect, config={"threads": 1}))
        two = select(write(Path(folder) / "two", mixed, chunk), rules, budgets)
    assert one.rows.equals(two.rows)
    assert (one.candidates, one.dropped, one.limit) == (two.candidates, two.dropped, two.limit)
    ranks = one.rows.sort_by("rank")["rank"].to_pylist()
    assert ranks == sorted(set(ranks))
    assert not budgets.protected & set(one.rows["point_id"].to_pylist())
