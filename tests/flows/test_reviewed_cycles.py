"""Whole cycles whose review is more than a yes: approved in part, by two persons, and closed because nobody decided."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from flows.config import load
from flows.decision import Act, decide
from flows.inspection import status_of
from flows.stores import ledger_of
from flows.waiting import pending
from storage.points import Manifest, dataset_sha256
from storage.proposals import Proposal
from tests.flows.helpers import turn, write_toml

pytestmark = pytest.mark.slow


def note(file: Path, cycle: int) -> str:
    config = load(file)
    client = MlflowClient(f"sqlite:///{config.workspace / 'mlflow.db'}")
    run = ledger_of(config).cycle(cycle).mlflow_run_id
    return str(client.get_run(run).data.tags["mlflow.note.content"])


def test_what_two_persons_left_of_a_proposal_is_removed_proven_and_promoted(here: Path) -> None:
    file = write_toml(here, review={"mode": "manual", "second_person_above": 0.05})
    config = load(file)
    ledger = ledger_of(config)
    whole = turn(file)
    assert (whole.state, whole.proposed) == ("awaiting_review", 12)
    for told in (whole.decision, note(file, 1), whole.report.read_text(), status_of(file).review):
        assert "two named persons must approve (more than 0.05 of the train set)" in told

    decide(file, Act(whole.proposal, "approve", "ada", "tamis approve", strike=("3", "7")))
    found = pending(config)
    assert found is not None
    assert (found.reason, found.proposal != whole.proposal) == ("second", True)
    asked = turn(file)
    assert (asked.state, asked.proposed, asked.struck) == ("awaiting_review", 10, 2)
    assert asked.proposal == found.proposal == Proposal.read(here / "ws/cycles/000001").hash
    for told in (asked.decision, note(file, 1), asked.report.read_text()):
        assert "approved by ada; one more approval is needed, by another named person" in told
    assert "2 struck out in review" in note(file, 1)
    assert pending(config) is None

    decide(file, Act(asked.proposal[:12], "approve", "grace", "tamis approve"))
    done = turn(file)
    assert (done.cycle, done.state, done.removed, done.struck) == (1, "promoted", 10, 2)
    gone = frozenset(range(12)) - {3, 7}
    assert ledger.removed_as_of() == gone
    why = ledger.why(0)
    assert why.removal is not None
    assert (why.removal.actor, why.removal.proposal) == ("ada and grace", asked.proposal)
    states = [(event.state, event.actor) for event in ledger.events(1) if event.actor != "tamis"]
    assert states == [
        ("superseded", "ada"),
        ("proposed", "ada"),
        ("endorsed", "ada"),
        ("endorsed", "grace"),
        ("approved", "ada and grace"),
        ("applied", "ada and grace"),
    ]
    assert ledger.verify().holds
    second = turn(file)
    assert (second.state, second.proposed) == ("nothing_to_do", 0), "what was struck out rests for `cooldown` cycles"
    manifest = Manifest.read(here / "ws/cycles/000002/manifest.parquet")
    assert dataset_sha256(manifest, gone) == ledger.cycle(2).dataset_sha256


def test_a_proposal_that_nobody_decided_on_ends_its_cycle_as_expired_and_comes_again(here: Path) -> None:
    file = write_toml(here, review={"mode": "manual", "expires_hours": 1e-7})
    ledger = ledger_of(load(file))
    ended = turn(file)
    assert (ended.state, ended.proposed, ended.removed) == ("expired", 12, 0)
    assert "nobody decided on the proposal in time" in ended.decision
    assert "expired" in note(file, 1)
    assert ended.champion == 1, "the baseline serves, as after a rejection"
    assert ledger.state(1) == status_of(file).state == "expired"
    assert ledger.removed_as_of() == frozenset()
    assert [event.key != "" for event in ledger.events(1) if event.state == "expired"] == [True, False]
    assert pending(load(file)) is None
    again = turn(file, dry_run=True)
    assert (again.cycle, again.proposed) == (2, 12), "nobody has judged these points"
