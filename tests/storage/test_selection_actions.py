"""What else may be proposed: labels, returns, later turns; and groups, null columns and ids of all kinds."""

import json
import random
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.budgets import Budgets
from storage.policies import Condition, Regret, policy_json
from storage.proposals import Proposal
from storage.selection import select
from tests.storage.score_tables import ALL, HARMFUL, MISLABELED, Row, chosen, write


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


@settings(deadline=None, derandomize=True, max_examples=10)
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
