"""What the ledger makes of reviews that take more than one word: parts, two persons, time, and what superseded what."""

from pathlib import Path

import pyarrow as pa
import pytest

from storage.errors import CycleConflict, LedgerBroken, StaleApproval
from storage.ledger import Ledger
from storage.proposals import Proposal
from storage.records import Terms
from tests.storage.ledgers import MANIFEST, opened, proposal

TWO = Terms(in_train=10, second_person_above=0.1)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = Ledger(tmp_path / "ledger.duckdb")
    opened(ledger, 1)
    return ledger


def test_the_share_is_of_the_train_set_and_is_not_reached_by_being_equal() -> None:
    assert [Terms(100, 0.29).persons(size) for size in (28, 29, 30)] == [1, 1, 2]
    assert Terms().persons(10**9) == 1


def test_what_is_left_is_what_is_applied_and_hashes_as_if_it_had_been_proposed(ledger: Ledger) -> None:
    kinds = [proposal(1, [2]), proposal(1, [5], action="relabel", new_label=7), proposal(1, [6, 7])]
    whole = Proposal(1, pa.concat_tables([one.rows for one in kinds]), "data", "scores", {"q": 0.2})
    ledger.add_proposal(whole)
    left = ledger.strike(whole.hash[:12], [6], "ada", "cli")
    assert left.hash == Proposal(1, whole.rows.filter(pa.array([True, True, False, True])), "data", "", {"q": 0.2}).hash
    applied = ledger.apply_proposal(1, left.hash, MANIFEST, "e", "k")
    assert (applied.removed, applied.relabeled) == (2, 1)
    assert ledger.removed_as_of() == {2, 7}
    assert ledger.why(7).removal.actor == "ada"
    assert ledger.verify().holds


def test_ids_that_are_words_are_struck_out_as_well(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "words.duckdb")
    ledger.open_cycle(1, "d", {}, {}, "string")
    rows = proposal(1, [1, 2]).rows.set_column(0, "point_id", pa.array(["b", "ä"]))
    ledger.add_proposal(Proposal(1, rows, "d", "s", {}))
    left = ledger.strike(ledger.proposal(1).hash, ["ä"], "ada", "cli")
    assert ledger.left_of(1, Proposal(1, rows, "d", "s", {}).hash).points == ["b"]
    assert left.size == 1


def test_two_persons_may_strike_one_after_the_other_until_they_agree(ledger: Ledger) -> None:
    whole = proposal(1, [1, 2, 3, 4])
    ledger.add_proposal(whole, TWO)
    first = ledger.strike(whole.hash, [1], "ada", "cli")
    second = ledger.strike(first.hash, [2], "bob", "cli")
    assert ledger.review(1, second.hash) is None
    with pytest.raises(StaleApproval, match=r"bob struck points out of it in cycle 1 and made"):
        ledger.add_review(first.hash, "approve", "ada", "cli")
    assert ledger.add_review(second.hash, "approve", "ada", "cli").actor == "bob and ada"
    assert ledger.left_of(1, whole.hash).points == ledger.left_of(1, first.hash).points == [3, 4]
    assert ledger.left_of(1, second.hash) is None
    assert ledger.cooldown(2, 1) == {1, 2}


def test_what_was_struck_out_of_is_open_again_only_after_another_proposal(ledger: Ledger) -> None:
    whole, other = proposal(1, [1, 2]), proposal(1, [3])
    ledger.add_proposal(whole)
    left = ledger.strike(whole.hash, [1], "ada", "cli")
    assert not ledger.add_proposal(whole), "the stage that is run again"
    assert ledger.proposal(1).hash == left.hash
    ledger.add_proposal(other)
    assert ledger.left_of(1, whole.hash) is None
    assert ledger.add_proposal(whole)
    assert ledger.proposal(1).hash == whole.hash
    with pytest.raises(CycleConflict, match="decided already: approve by ada, and superseded since"):
        ledger.strike(whole.hash, [1], "bob", "cli")
    assert ledger.proposal(1).hash == whole.hash


def test_a_proposal_that_is_proposed_anew_has_its_time_anew(ledger: Ledger) -> None:
    first, second = proposal(1, [1]), proposal(1, [2])
    ledger.add_proposal(first, Terms(expires_hours=1e-7))
    assert ledger.expire(1)
    ledger.add_proposal(second)
    assert not ledger.expire(1), "this one never does"
    ledger.add_proposal(first, Terms(expires_hours=1000.0))
    assert not ledger.expire(1)
    assert ledger.add_review(first.hash, "approve", "ada", "cli").decision == "approve"
    assert ledger.unfinished_cycle() is not None


def test_rows_that_another_hand_changed_are_not_struck_out_of(ledger: Ledger) -> None:
    made = proposal(1, [1, 2])
    ledger.add_proposal(made)
    import duckdb

    with duckdb.connect(str(ledger.path)) as con:
        con.execute("UPDATE proposal_rows SET reason = 'whim' WHERE point_id = '1'")
    with pytest.raises(LedgerBroken, match="another hand changed them; see `tamis ledger verify`"):
        ledger.strike(made.hash, [1], "ada", "cli")
