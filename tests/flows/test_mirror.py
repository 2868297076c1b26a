"""Every event of the ledger is told to Prefect once, whoever recorded it."""

from pathlib import Path
from typing import Any

import pytest

from storage.errors import LedgerLocked
from storage.files import atomic_write_json, read_json
from tests.flows.desk import Desk, open_desk


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    told: list[tuple[str, Any]] = []
    monkeypatch.setattr("flows.mirror.emit_event", lambda event, resource, payload, id: told.append((event, id)))
    return told


@pytest.fixture
def desk(tmp_path: Path, mlflow_store: Path) -> Desk:
    desk = open_desk(tmp_path, mlflow_store)
    desk.review()
    return desk


def test_what_was_decided_outside_a_flow_is_told_by_the_next_one_and_by_no_other(
    desk: Desk, sent: list[tuple[str, Any]]
) -> None:
    from flows.mirror import EventMirror

    EventMirror(desk.config)()
    assert sent == [], "what happened before Prefect was asked to watch is no news"
    desk.act(desk.hash)
    for _ in range(2):
        EventMirror(desk.config)()
    assert [event for event, _ in sent] == ["tamis.cycle.approved"]


def test_a_flow_that_is_killed_before_it_notes_what_it_told_tells_it_again_under_the_same_id(
    desk: Desk, sent: list[tuple[str, Any]]
) -> None:
    from flows.mirror import EventMirror

    EventMirror(desk.config)()
    note = desk.config.workspace / "prefect" / "told.json"
    before = read_json(note)
    desk.act(desk.hash)
    EventMirror(desk.config)()
    atomic_write_json(note, before)
    EventMirror(desk.config)()
    first, again = sent
    assert first == again


def test_a_promotion_by_hand_is_told_as_one_and_no_other_judgement_is(desk: Desk, sent: list[tuple[str, Any]]) -> None:
    from flows.mirror import EventMirror

    EventMirror(desk.config)()
    desk.ledger.record_event(1, "judged", {"reason": "of a cycle"}, key="1")
    desk.ledger.record_event(1, "judged", {"reason": "worse", "by": "ada", "promoted": False}, key="2")
    desk.ledger.record_event(1, "judged", {"reason": "better", "by": "ada", "promoted": True}, key="3")
    EventMirror(desk.config)()
    assert [event for event, _ in sent] == ["tamis.cycle.promoted"]


def test_a_failure_that_another_attempt_follows_is_not_told(desk: Desk, sent: list[tuple[str, Any]]) -> None:
    from flows.mirror import EventMirror

    EventMirror(desk.config)()
    desk.ledger.record_event(1, "failed", {"reason": "a rank died", "attempt": 1}, key="1")
    desk.ledger.record_event(1, "failed", {"reason": "a rank died again"}, key="2")
    EventMirror(desk.config)()
    assert [event for event, _ in sent] == ["tamis.cycle.failed"]


def test_a_ledger_that_does_not_answer_delays_the_telling_and_undoes_no_stage(
    desk: Desk, sent: list[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.mirror import EventMirror

    mirror = EventMirror(desk.config)
    mirror()
    desk.act(desk.hash)
    with monkeypatch.context() as away:
        away.setattr("storage.ledger.Ledger.since", raising(LedgerLocked("held")))
        mirror()
    assert sent == []
    mirror()
    assert [event for event, _ in sent] == ["tamis.cycle.approved"]


def raising(error: Exception) -> Any:
    def call(*_: object) -> None:
        raise error

    return call
