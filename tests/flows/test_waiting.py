"""What a service that polls is told: when the cycle is to be run again, and that nothing is written by asking."""

from pathlib import Path

import pytest

from flows.config import load
from flows.waiting import Pending, pending
from tests.flows.desk import Desk, copied, open_desk
from tests.flows.helpers import write_toml


@pytest.fixture(scope="module")
def waiting(tmp_path_factory: pytest.TempPathFactory, mlflow_store: Path) -> Desk:
    desk = open_desk(tmp_path_factory.mktemp("waiting"), mlflow_store)
    desk.review()
    return desk


@pytest.fixture
def desk(waiting: Desk, tmp_path: Path) -> Desk:
    return copied(waiting, tmp_path)


def test_without_a_ledger_nothing_waits(tmp_path: Path) -> None:
    assert pending(load(write_toml(tmp_path))) is None
    assert not (tmp_path / "ws").exists(), "asking writes nothing"


def test_a_cycle_waits_until_a_decision_that_is_told_until_the_cycle_goes_on(desk: Desk) -> None:
    head = desk.ledger.head()
    assert pending(desk.config) is None
    desk.act(desk.hash)
    assert pending(desk.config) == Pending(1, desk.hash, "approved")
    assert desk.ledger.head() != head
    desk.ledger.record_event(1, "applied")
    assert pending(desk.config) is None
    desk.ledger.record_event(1, "promoted")
    assert pending(desk.config) is None


def test_a_rejection_is_told_too(desk: Desk) -> None:
    desk.act(desk.hash, decision="reject")
    assert desk.pending() == "rejected"


@pytest.mark.parametrize("where", ["run", "version"])
def test_a_tag_on_either_page_is_told(desk: Desk, where: str) -> None:
    desk.tag(**{where: f"approve:{desk.hash[:12]}"})
    assert desk.pending() == "tag"


def test_a_tag_that_does_not_count_is_told_until_its_writer_knows(desk: Desk) -> None:
    desk.tag(run="yes please")
    assert desk.pending() == "tag"
    desk.review()
    assert desk.pending() is None
    desk.tag(run="approve")
    assert desk.pending() == "tag", "written anew"


def test_a_cycle_that_failed_before_it_asked_waits_for_nobody(tmp_path: Path, mlflow_store: Path) -> None:
    desk = open_desk(tmp_path, mlflow_store)
    desk.tag(run=f"approve:{desk.hash[:12]}")
    desk.ledger.record_event(1, "failed", key="1")
    assert desk.pending() is None


def test_a_run_that_failed_after_the_cycle_had_asked_leaves_the_question_open(desk: Desk) -> None:
    desk.ledger.record_event(1, "failed", key="1")
    assert desk.pending() is None
    desk.tag(run=f"approve:{desk.hash[:12]}")
    assert desk.pending() == "tag"
    desk.act(desk.hash)
    desk.ledger.record_event(1, "failed", key="2")
    assert desk.pending() is None, "it failed at what it was told"


def test_a_decision_taken_while_the_cycle_asks_is_told(desk: Desk) -> None:
    desk.act(desk.hash)
    desk.ledger.record_event(1, "awaiting_review", key="late")
    assert desk.pending() == "approved"


def test_a_proposal_that_expired_is_told_once_it_has(tmp_path: Path, mlflow_store: Path) -> None:
    assert open_desk(tmp_path / "now", mlflow_store, expires_hours=1e-7).pending() == "expired"
    later = open_desk(tmp_path / "later", mlflow_store, expires_hours=1000)
    later.review()
    assert later.pending() is None


def test_a_reminder_is_due_once_in_each_interval(tmp_path: Path, mlflow_store: Path) -> None:
    desk = open_desk(tmp_path, mlflow_store, remind_hours=1e-7)
    desk.review()
    assert [event.detail["waits_for"] for event in desk.events("reminded")] == ["a decision"]
    assert desk.ledger.state(1) == "awaiting_review"
    assert desk.pending() == "reminder"
    rare = desk.config.model_copy(update={"review": desk.config.review.model_copy(update={"remind_hours": 1.0})})
    assert pending(rare) is None


def test_the_second_person_is_shown_what_the_first_one_did(tmp_path: Path, mlflow_store: Path) -> None:
    desk = open_desk(tmp_path, mlflow_store, second_person_above=0.01)
    desk.review()
    assert desk.pending() is None
    desk.act(desk.hash)
    assert desk.pending() == "second"
    desk.review()
    assert desk.pending() is None
    desk.act(desk.hash, by="grace")
    assert desk.pending() == "approved"
