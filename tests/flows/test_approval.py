"""The form of a reviewer in Prefect: the same acts as on the command line, by whoever says who they are."""

from pathlib import Path

import pytest

from tests.flows.desk import Desk, open_desk


@pytest.fixture
def desk(prefect_server: None, tmp_path: Path, mlflow_store: Path) -> Desk:
    return open_desk(tmp_path, mlflow_store)


def test_the_form_decides_as_the_command_does_and_says_what_it_refuses(desk: Desk) -> None:
    from flows.approval import approve

    refused = approve(str(desk.file), "0" * 12, "approve", return_state=True)
    assert refused.type.value == "FAILED"
    assert refused.message.startswith("'000000000000' is not the open proposal of cycle 1; that is ")
    no_hash = approve(str(desk.file), "yes", "approve", return_state=True)
    assert no_hash.type.value == "FAILED"
    assert "proposal: String should match pattern" in no_hash.message
    assert desk.ledger.review(1, desk.hash) is None
    done = approve(str(desk.file), desk.hash[:12], "approve", by="ada", reason="fine", strike=["4"], return_state=True)
    assert done.type.value == "COMPLETED"
    assert "without 1 point is proposal" in done.message
    [event] = desk.events("approved")
    assert event.actor == "ada"
    assert event.detail["reason"] == "fine"
    assert event.detail["how"].startswith("Prefect form, flow run ")
    assert event.detail["how"].endswith(", unauthenticated")


def test_without_a_name_the_ledger_says_that_nobody_is_known(desk: Desk) -> None:
    from flows.approval import approve

    assert "rejected by prefect:unauthenticated" in approve(str(desk.file), desk.hash, "reject")


def test_the_form_asks_for_what_a_decision_takes(prefect_server: None) -> None:
    from flows.approval import approve

    fields = approve.parameters.properties
    assert list(fields) == ["file", "proposal", "decision", "by", "reason", "strike"]
    assert approve.parameters.required == ["file", "proposal", "decision"]
    assert fields["decision"]["enum"] == ["approve", "reject"]
    assert fields["strike"]["items"] == {"type": "string"}
    assert all(field["description"] for field in fields.values())
