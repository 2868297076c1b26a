"""What the ledger knows of points, on a real DuckDB file and on a real lake."""

from pathlib import Path

import pyarrow as pa
import pytest

from storage.errors import (
    NotRemoved,
    UnknownPoint,
)
from storage.lake import Lake
from storage.ledger import Ledger
from storage.points import Manifest
from storage.proposals import Proposal
from storage.records import DATA_MOVED, Applied, Relabeling
from tests.storage.ledgers import MANIFEST, applied, opened, proposal, removed


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
    got = ledger.why(1).actions[-1]
    assert (got.action, got.cycle, got.actor, got.reason) == ("remove", 2, "rule:guardrail", "loss rose")
    assert (got.score, got.threshold, got.estimator) == (-1.0, 0.0, "ekfac")
    assert (got.checkpoint_digest, got.proposal) == ("digest", made.hash)


def test_a_removal_keeps_its_cycle_reason_and_actor_when_its_restoration_is_rolled_back_again_and_again(
    ledger: Ledger,
) -> None:
    removed(ledger, 1, [1])
    ledger.record_event(1, "promoted")
    opened(ledger, 2)
    applied(ledger, proposal(2, [2], action="relabel", new_label=7))
    ledger.record_event(2, "promoted")
    for cycle, q in ((3, 0.1), (4, 0.05)):
        opened(ledger, cycle)
        applied(ledger, proposal(cycle, [1, 2], q=q, action="restore"))
        assert ledger.why(1).removal == ledger.why(1).actions[0]
        ledger.roll_back(cycle, "rule:guardrail", "loss rose")
        why = ledger.why(1)
        assert why.removed
        assert why.removal == why.actions[0]
        assert [(a.point_id, a.cycle, a.actor, a.reason) for a in ledger.newest_actions()] == [
            ("1", 1, "ada", "harmful"),
            ("2", 2, "ada", "harmful"),
        ]


def test_a_point_removed_anew_by_the_same_proposal_is_removed_by_the_later_cycle(ledger: Ledger) -> None:
    removed(ledger, 1, [1, 2])
    ledger.restore([2], "bob", "was right")
    ledger.roll_back(1, "rule:guardrail", "loss rose")
    assert [(action.action, action.cycle, action.actor) for action in ledger.newest_actions()] == [
        ("restore", 1, "bob"),
        ("restore", 1, "rule:guardrail"),
    ]
    removed(ledger, 2, [1, 2])
    assert [(action.action, action.cycle) for action in ledger.newest_actions()] == [("remove", 2), ("remove", 2)]
    assert [ledger.why(point).removal.cycle for point in (1, 2)] == [2, 2]  # type: ignore[union-attr]


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
