"""The ledger, on a real DuckDB file and on a real lake."""

from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from storage.errors import (
    CycleConflict,
    LedgerMissing,
    NotApproved,
    NotRemoved,
    StaleApproval,
    StorageError,
    UnknownPoint,
    WorkspaceTooNew,
)
from storage.lake import Lake
from storage.ledger import Ledger
from storage.points import Manifest
from storage.proposals import Proposal
from storage.records import DATA_MOVED, Applied, Decision, Relabeling
from tests.storage.ledgers import MANIFEST, another_hand, applied, opened, proposal, removed


@pytest.fixture
def ledger(place: Path | Lake) -> Ledger:
    return Ledger(place, patience=60)


def test_the_view_as_of_any_cycle_follows_the_sequence_of_removals_and_restorations(ledger: Ledger) -> None:
    removed(ledger, 1, [1, 2, 3])
    ledger.record_event(1, "promoted")
    removed(ledger, 2, [4])
    ledger.restore([2], "bob", "was right")
    ledger.record_event(2, "promoted")
    removed(ledger, 3, [2])
    assert ledger.removed_as_of(0) == frozenset()
    assert ledger.removed_as_of(1) == {1, 2, 3}
    assert ledger.removed_as_of(2) == {1, 3, 4}
    assert ledger.removed_as_of() == ledger.removed_as_of(3) == {1, 2, 3, 4}


def test_a_relabelled_point_carries_its_label_until_it_is_restored_or_removed(ledger: Ledger) -> None:
    opened(ledger, 1)
    applied(ledger, proposal(1, [1, 2, 3], action="relabel", new_label=7))
    ledger.record_event(1, "promoted")
    removed(ledger, 2, [2])
    ledger.restore([3], "bob", "was right")
    seven = {point: Relabeling(7, f"c{point}") for point in (1, 2, 3)}
    assert ledger.relabeled_contents(0) == {}
    assert ledger.relabeled_contents(1) == seven
    assert ledger.relabeled_contents() == {1: seven[1]}
    assert ledger.removed_as_of() == {2}
    assert ledger.why(1).actions[0].new_label == 7


def test_a_roll_back_gives_every_point_back_what_it_was_before(ledger: Ledger) -> None:
    opened(ledger, 1)
    applied(ledger, proposal(1, [1, 2, 3, 4], action="relabel", new_label=7))
    ledger.record_event(1, "promoted")
    opened(ledger, 2)
    mixed = [proposal(2, [1, 5]).rows, proposal(2, [2, 6], action="relabel", new_label=8).rows]
    made = Proposal(2, pa.concat_tables([*mixed, proposal(2, [3], action="restore").rows]), "data", "scores", {})
    assert applied(ledger, made)
    assert ledger.removed_as_of() == {1, 5}
    assert {point: got.label for point, got in ledger.relabeled_contents().items()} == {2: 8, 4: 7, 6: 8}
    assert ledger.roll_back(2, "rule:guardrail", "") == 5
    assert ledger.removed_as_of() == frozenset()
    assert ledger.relabeled_contents() == ledger.relabeled_contents(1)
    assert ledger.cooldown(3, 1) == {1, 2, 3, 5, 6}


def test_what_a_roll_back_writes_again_says_what_led_to_it_the_first_time(ledger: Ledger) -> None:
    made = removed(ledger, 1, [1])
    ledger.record_event(1, "promoted")
    opened(ledger, 2)
    applied(ledger, proposal(2, [1], q=0.1, action="restore"))
    ledger.roll_back(2, "rule:guardrail", "loss rose")
    why = ledger.why(1)
    assert why.removed
    got = why.removal
    assert got is not None
    assert (got.cycle, got.actor, got.reason) == (2, "rule:guardrail", "loss rose")
    assert (got.score, got.threshold, got.estimator) == (-1.0, 0.0, "ekfac")
    assert (got.checkpoint_digest, got.proposal) == ("digest", made.hash)


def test_an_approved_restoration_brings_removed_points_back_and_a_roll_back_removes_them_again(ledger: Ledger) -> None:
    removed(ledger, 1, [1, 2, 3])
    ledger.record_event(1, "promoted")
    opened(ledger, 2)
    made = proposal(2, [1, 2], action="restore")
    ledger.add_proposal(made)
    ledger.add_review(made.hash, "approve", "ada", "cli")
    ledger.restore([2], "bob", "could not wait")
    vanished = Manifest.build([3], ["c3"], ["i3"])
    assert ledger.apply_proposal(2, made.hash, vanished, "e", "d") == Applied(0, 0, 1)
    assert ledger.removed_contents() == {3: "c3"}
    assert ledger.roll_back(2, "rule:guardrail", "") == 1
    assert ledger.removed_contents() == {1: "c1", 3: "c3"}, "what a person restored stays restored"


def test_a_removal_is_of_the_content_that_the_point_had_then(ledger: Ledger) -> None:
    removed(ledger, 1, [1, 2, 3])
    ledger.restore([3], "bob", "was right")
    ledger.record_event(1, "promoted")
    assert ledger.removed_contents() == {1: "c1", 2: "c2"}
    opened(ledger, 2)
    made = proposal(2, [1])
    ledger.add_proposal(made)
    ledger.add_review(made.hash, "approve", "ada", "cli")
    changed = Manifest.build([1, 2], ["new", "c2"], ["i", "j"])
    ledger.apply_proposal(2, made.hash, changed, "ekfac", "digest")
    assert ledger.removed_contents() == {1: "new", 2: "c2"}, "the newest removal counts"
    assert ledger.removed_contents(1) == {1: "c1", 2: "c2"}
    assert ledger.removed_contents(0) == {}


def test_every_call_repeated_after_a_kill_changes_nothing(ledger: Ledger) -> None:
    made = removed(ledger, 1, [1, 2])
    before = ledger.events(1), ledger.why(1)
    opened(ledger, 1)
    assert not ledger.add_proposal(made)
    ledger.add_review(made.hash, "approve", "somebody else", "cli")
    assert ledger.apply_proposal(1, made.hash, MANIFEST, "ekfac", "digest") == Applied(2, 0, 0)
    assert not ledger.record_event(1, "opened")
    assert (ledger.events(1), ledger.why(1)) == before


def test_every_removal_is_explained(ledger: Ledger) -> None:
    made = removed(ledger, 1, [3])
    why = ledger.why(3)
    assert why.removed
    assert why.removal is not None
    got = why.removal
    assert (got.cycle, got.score, got.threshold, got.estimator) == (1, -3.0, 0.0, "ekfac")
    assert (got.checkpoint_digest, got.proposal, got.actor, got.content) == ("digest", made.hash, "ada", "c3")
    assert ledger.why("3") == why
    ledger.restore(["3"], "bob", "was right")
    after = ledger.why(3)
    assert not after.removed
    assert [a.action for a in after.actions] == ["remove", "restore"]
    assert after.actions[1].actor == "bob"
    assert after.actions[1].reason == "was right"
    with pytest.raises(UnknownPoint, match="nothing on point 9"):
        ledger.why(9)


def test_restoring_what_is_not_removed_restores_nothing(ledger: Ledger) -> None:
    removed(ledger, 1, [1])
    with pytest.raises(NotRemoved, match=r"restored: 7;"):
        ledger.restore([1, 7], "bob", "")
    assert ledger.removed_as_of() == {1}


def test_a_roll_back_restores_what_its_cycle_removed_and_nothing_else(ledger: Ledger) -> None:
    removed(ledger, 1, [1])
    ledger.record_event(1, "promoted")
    removed(ledger, 2, [2, 3])
    assert ledger.roll_back(2, "guardrail", "loss rose") == 2
    assert ledger.roll_back(2, "guardrail", "loss rose") == 0
    assert ledger.removed_as_of() == {1}
    assert ledger.removed_as_of(1) == {1}
    assert ledger.state(2) == "rolled_back"
    assert ledger.unfinished_cycle() is None


def test_cooldown_covers_restored_rejected_and_rolled_back_points_for_so_many_cycles(ledger: Ledger) -> None:
    removed(ledger, 1, [1, 2])
    ledger.roll_back(1, "guardrail", "")
    removed(ledger, 2, [3, 4])
    ledger.restore([3], "bob", "")
    ledger.record_event(2, "promoted")
    opened(ledger, 3)
    made = proposal(3, [5])
    ledger.add_proposal(made)
    ledger.add_review(made.hash, "reject", "ada", "cli")
    assert ledger.cooldown(4, 1) == {5}
    assert ledger.cooldown(4, 2) == {3, 5}
    assert ledger.cooldown(4, 3) == {1, 2, 3, 5}
    assert ledger.cooldown(3, 9) == {1, 2, 3}, "decisions of the cycle itself never change its own proposal"


def test_a_roll_back_because_the_data_moved_starts_no_cooldown(ledger: Ledger) -> None:
    removed(ledger, 1, [1, 2])
    assert ledger.roll_back(1, DATA_MOVED, "the train set changed") == 2
    removed(ledger, 2, [3])
    ledger.roll_back(2, "rule:guardrail", "")
    assert ledger.cooldown(3, 2) == {3}


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


def test_string_ids_come_back_as_strings(ledger: Ledger) -> None:
    manifest = Manifest.build(["07", "a'b"], ["c", "d"], ["e", "f"])
    ledger.open_cycle(1, "d", {}, {}, "string")
    rows = proposal(1, [1, 2]).rows.set_column(0, "point_id", pa.array(["07", "a'b"]))
    made = Proposal(1, rows, "d", "s", {})
    ledger.add_proposal(made)
    ledger.add_review(made.hash, "approve", "ada", "cli")
    ledger.apply_proposal(1, made.hash, manifest, "e", "d")
    assert ledger.removed_as_of() == {"07", "a'b"}
    assert ledger.removed_contents() == {"07": "c", "a'b": "d"}
    assert manifest.without(ledger.removed_as_of()).ids == []
