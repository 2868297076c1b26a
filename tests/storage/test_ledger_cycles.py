"""What the ledger lets a cycle do, from its opening to its removals, on a real DuckDB file and on a real lake."""

from pathlib import Path

import duckdb
import pytest

from storage.errors import (
    CycleConflict,
    LedgerMissing,
    NotApproved,
    StaleApproval,
    StorageError,
    WorkspaceTooNew,
)
from storage.lake import Lake
from storage.ledger import Ledger
from storage.records import Decision
from tests.storage.ledgers import MANIFEST, another_hand, opened, proposal, removed


@pytest.fixture
def ledger(place: Path | Lake) -> Ledger:
    return Ledger(place, patience=60)


def test_an_approval_carries_the_hash_of_the_open_proposal(ledger: Ledger) -> None:
    opened(ledger, 1)
    with pytest.raises(StaleApproval, match="no proposal is open"):
        ledger.add_review("0" * 64, "approve", "ada", "cli")
    first, second = proposal(1, [1]), proposal(1, [2])
    ledger.add_proposal(first)
    ledger.add_proposal(second)
    for wrong in (first.hash, second.hash[:11], "", "%" * 12, second.hash + "0"):
        with pytest.raises(StaleApproval, match=second.hash[:12]):
            ledger.add_review(wrong, "approve", "ada", "cli")
    with pytest.raises(StorageError, match="--by"):
        ledger.add_review(second.hash, "approve", " ", "cli")
    assert ledger.review(1, second.hash) is None
    ledger.add_review(second.hash[:12].upper(), "approve", "ada", "cli")
    with pytest.raises(StaleApproval, match="approve by ada"):
        ledger.add_review(second.hash, "reject", "bob", "cli")


def test_a_superseded_proposal_that_is_proposed_again_is_the_open_one(ledger: Ledger) -> None:
    opened(ledger, 1)
    first, second = proposal(1, [1]), proposal(1, [2])
    for made in (first, second, first, second, first):
        assert ledger.add_proposal(made)
        assert not ledger.add_proposal(made), "the second time as after a kill"
        newest = ledger.proposal(1)
        assert newest is not None
        assert newest.hash == made.hash
    assert [event.detail["size"] for event in ledger.events(1) if event.state == "proposed"] == [1] * 5
    assert len(ledger.why(1).proposals) == 1
    with pytest.raises(StaleApproval, match=first.hash[:12]):
        ledger.add_review(second.hash, "approve", "ada", "cli")
    ledger.add_review(first.hash, "approve", "ada", "cli")
    assert ledger.apply_proposal(1, first.hash, MANIFEST, "e", "d").removed == 1


@pytest.mark.parametrize("decision", ["approve", "reject"])
def test_a_proposal_that_was_decided_on_and_superseded_stays_closed(ledger: Ledger, decision: Decision) -> None:
    opened(ledger, 1)
    first, second = proposal(1, [1]), proposal(1, [2])
    ledger.add_proposal(first)
    ledger.add_review(first.hash, decision, "ada", "cli")
    assert not ledger.add_proposal(first)
    ledger.add_proposal(second)
    with pytest.raises(CycleConflict, match=f"{first.hash[:12]}.*{decision} by ada, and superseded"):
        ledger.add_proposal(first)
    newest = ledger.proposal(1)
    assert newest is not None
    assert newest.hash == second.hash


def test_only_an_approved_proposal_is_applied(ledger: Ledger) -> None:
    opened(ledger, 1)
    made = proposal(1, [1])
    ledger.add_proposal(made)
    with pytest.raises(NotApproved, match="not reviewed"):
        ledger.apply_proposal(1, made.hash, MANIFEST, "e", "d")
    ledger.add_review(made.hash, "reject", "ada", "cli")
    with pytest.raises(NotApproved, match="rejected"):
        ledger.apply_proposal(1, made.hash, MANIFEST, "e", "d")
    assert ledger.removed_as_of() == frozenset()


def test_an_approval_of_an_earlier_cycle_does_not_approve_the_same_removals_again(ledger: Ledger) -> None:
    made = removed(ledger, 1, [1])
    ledger.roll_back(1, "guardrail", "")
    opened(ledger, 2)
    again = proposal(2, [1])
    assert again.hash == made.hash
    ledger.add_proposal(again)
    with pytest.raises(NotApproved):
        ledger.apply_proposal(2, again.hash, MANIFEST, "e", "d")


def test_a_removal_that_fails_half_way_leaves_nothing(ledger: Ledger) -> None:
    opened(ledger, 1)
    made = proposal(1, [1, 99])
    ledger.add_proposal(made)
    ledger.add_review(made.hash, "approve", "ada", "cli")
    with pytest.raises(StorageError, match="1 proposed points are not in the data set"):
        ledger.apply_proposal(1, made.hash, MANIFEST, "e", "d")
    assert ledger.removed_as_of() == frozenset()
    assert ledger.state(1) == "approved"


def test_cycles_open_in_order_on_unchanging_data(ledger: Ledger) -> None:
    with pytest.raises(LedgerMissing, match="tamis run"):
        ledger.last_cycle()
    with pytest.raises(CycleConflict, match="next one is 1"):
        opened(ledger, 2)
    opened(ledger, 1)
    with pytest.raises(CycleConflict, match="unfinished"):
        opened(ledger, 2)
    with pytest.raises(CycleConflict, match="opened on data data1"):
        ledger.open_cycle(1, "changed", {}, {}, "int")
    with pytest.raises(CycleConflict, match="keep the type"):
        ledger.open_cycle(1, "data1", {}, {}, "string")
    got = ledger.unfinished_cycle()
    assert got is not None
    assert (got.cycle, got.config, got.versions) == (1, {"q": 0.2}, {"tamis": "0.1"})
    ledger.record_event(1, "failed", key="1")
    assert ledger.unfinished_cycle() == got, "a failed cycle is continued"
    ledger.record_event(1, "nothing_to_do")
    assert ledger.unfinished_cycle() is None
    assert [event.state for event in ledger.log(2)] == ["nothing_to_do", "failed"]


def test_the_database_itself_refuses_unknown_states_and_second_removals(ledger: Ledger) -> None:
    removed(ledger, 1, [1])
    with pytest.raises(duckdb.ConstraintException):
        ledger.record_event(1, "invented")  # type: ignore[arg-type]
    with another_hand(ledger.path) as con:
        if isinstance(ledger.path, Lake):  # has no keys: what another hand does is told by the chain
            con.execute("INSERT INTO actions FROM actions")
        else:
            with pytest.raises(duckdb.ConstraintException):
                con.execute("INSERT INTO actions FROM actions")
    assert ledger.verify().holds == isinstance(ledger.path, Path)


def test_a_decision_while_a_cycle_is_being_opened_keeps_it_closed(ledger: Ledger) -> None:
    removed(ledger, 1, [1, 2])
    ledger.record_event(1, "promoted")
    read = ledger.newest_action(1)
    ledger.restore([2], "bob", "was right")
    with pytest.raises(CycleConflict, match="decisions changed while cycle 2 was being opened; run again"):
        ledger.open_cycle(2, "stale", {}, {}, "int", decided=read)
    last = ledger.last_cycle()
    assert last is not None
    assert last.cycle == 1
    ledger.open_cycle(2, "data2", {}, {}, "int", decided=ledger.newest_action(1))
    ledger.restore([1], "bob", "holds from cycle 3 on")
    ledger.open_cycle(2, "data2", {}, {}, "int", decided=ledger.newest_action(1))


def test_a_workspace_of_a_newer_version_is_refused(ledger: Ledger) -> None:
    opened(ledger, 1)
    with another_hand(ledger.path) as con:
        con.execute("INSERT INTO schema_version VALUES (9, TIMESTAMP '2030-01-01')")
    with pytest.raises(WorkspaceTooNew, match=r"schema 9.*up to 3; upgrade"):
        ledger.last_cycle()


def test_a_file_that_is_no_ledger_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "ledger.duckdb").write_text("not a database, " * 1000)
    with pytest.raises(StorageError, match="cannot open the ledger"):
        Ledger(tmp_path / "ledger.duckdb").last_cycle()
