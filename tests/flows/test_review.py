"""Every way to decide and every way to get it wrong: what stands then, and the line that says why it does not count."""

import re
from pathlib import Path

import pytest

from flows.decision import Act, decide, named
from flows.errors import BadInput
from flows.inspection import status_of
from storage.errors import StaleApproval, StorageError
from storage.records import Terms
from tests.flows.desk import POINTS, Desk, Opened, copied, propose
from tests.flows.helpers import tamis


def test_the_baseline_is_a_model_version_before_review_and_names_the_proposal(desk: Desk) -> None:
    [version] = desk.client.search_model_versions("name = 'blobs'")
    assert version.tags["tamis.checkpoint"] == desk.trained.digest
    assert desk.run_tags["tamis.proposal"] == version.tags["tamis.proposal"] == desk.hash
    assert f"approve:{desk.hash[:12]}" in version.description
    assert "tamis.review" not in {*version.tags, *desk.run_tags}
    assert desk.cycle.tracker.champion("blobs") is None, "nobody has put it into service"
    desk.review()
    assert len(desk.client.search_model_versions("name = 'blobs'")) == 1
    assert len(desk.events("awaiting_review")) == 1


def test_a_cycle_that_waits_again_after_a_failure_says_so(desk: Desk) -> None:
    desk.ledger.record_event(1, "failed", key="1")
    desk.review()
    assert desk.ledger.state(1) == "awaiting_review"


def test_a_proposal_that_is_open_again_waits_again(pair: Desk) -> None:
    pair.act(pair.hash)
    first, pair.proposed = pair.proposed, propose(pair.cycle, (7, 8), Terms())
    pair.review()
    pair.proposed = propose(pair.cycle, POINTS, Terms(60, 0.05))
    assert pair.proposed == first
    pair.review()
    assert pair.ledger.state(1) == "awaiting_review"
    assert pair.pending() is None


def test_a_rule_approves_as_a_rule_where_the_configuration_lets_it(opened: Opened) -> None:
    found = opened(mode="auto").review()
    assert (found.decision, found.actor) == ("approve", "rule:auto")


def test_a_rule_is_no_person(opened: Opened) -> None:
    desk = opened(mode="auto", second_person_above=0.05)
    found = desk.review()
    assert found.decision == "awaiting"
    assert found.said == "two named persons must approve (more than 0.05 of the train set)"
    with pytest.raises(StaleApproval, match=r"takes two named persons, and rule:auto names none"):
        desk.ledger.add_review(desk.hash, "approve", "rule:auto", "rule")


@pytest.mark.parametrize("where", ["run", "version"])
@pytest.mark.parametrize("decision", ["approve", "reject"])
def test_a_tag_on_either_page_counts_as_of_nobody_known_and_both_pages_show_it(
    desk: Desk, where: str, decision: str
) -> None:
    tag = f"{decision}:{desk.hash[:12]}"
    desk.tag(**{where: f" {tag.upper()} "})
    found = desk.review()
    assert (found.decision, found.actor) == (decision, "mlflow:unauthenticated")
    page = {"run": "run", "version": "model version 1"}[where]
    assert found.how == f"MLflow tag tamis.review of the {page}"
    assert desk.run_tags["tamis.review"] == desk.version_tags["tamis.review"] == tag
    [event] = desk.events("approved" if decision == "approve" else "rejected")
    assert (event.actor, event.detail["how"]) == (found.actor, found.how)


@pytest.fixture(scope="module")
def answered(one: Desk, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    return copied(one, tmp_path_factory.mktemp("answered"))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("yes", "must read approve:"),
        ("approve", "must read approve:"),
        ("approve:12", "must read approve:"),
        ("approved:" + "b" * 12, "must read approve:"),
        ("approve:" + "z" * 12, "must read approve:"),
        ("approve:" + "0" * 12, "names another proposal than the open one"),
        ("reject:" + "0" * 64, "names another proposal than the open one"),
        ("approve:\n" + "x" * 5000, "must read approve:"),
    ],
)
def test_a_tag_that_is_no_decision_is_answered_on_both_pages_and_the_cycle_waits_on(
    answered: Desk, text: str, line: str
) -> None:
    desk = answered
    desk.tag(version=text)
    found = desk.review()
    assert found.decision == "awaiting"
    assert line in found.said
    assert f"approve:{desk.hash[:12]}" in found.said
    assert "model version 1" in found.said
    assert "\n" not in found.said
    assert len(found.said) < 300
    assert desk.run_tags["tamis.review_refused"] == desk.version_tags["tamis.review_refused"] == found.said
    assert desk.ledger.review(1, desk.hash) is None


def test_a_better_tag_takes_the_refusal_back(desk: Desk) -> None:
    desk.tag(version="yes")
    desk.review()
    desk.tag(version=f"approve:{desk.hash[:12]}")
    assert desk.review().decision == "approve"
    assert "tamis.review_refused" not in {*desk.run_tags, *desk.version_tags}


def test_a_refusal_goes_with_the_tag_that_it_answers(desk: Desk) -> None:
    desk.tag(run="yes")
    desk.review()
    desk.client.delete_tag(desk.cycle.run, "tamis.review")
    assert desk.review().said == ""
    assert "tamis.review_refused" not in {*desk.run_tags, *desk.version_tags}


@pytest.mark.parametrize("version", ["reject:{}", "approve"])
def test_two_pages_that_disagree_are_no_decision(desk: Desk, version: str) -> None:
    desk.tag(run=f"approve:{desk.hash[:12]}", version=version.format(desk.hash[:12]))
    found = desk.review()
    assert found.decision == "awaiting"
    assert ("disagree" in found.said) == version.startswith("reject")
    assert desk.ledger.review(1, desk.hash) is None


def test_two_pages_that_say_the_same_are_one_decision(desk: Desk) -> None:
    desk.tag(run=f"approve:{desk.hash[:12]}", version=f"approve:{desk.hash[:16]}")
    assert desk.review().how.endswith("of the run and of the model version 1")


def test_a_new_proposal_clears_both_pages_and_an_old_approval_is_of_the_old_one(desk: Desk) -> None:
    desk.tag(run=f"approve:{desk.hash[:12]}", version=f"approve:{desk.hash[:12]}")
    other = propose(desk.cycle, (7, 8), Terms())
    old, desk.proposed = desk.hash, other
    assert desk.review().decision == "awaiting"
    assert "tamis.review" not in {*desk.run_tags, *desk.version_tags}
    assert desk.version_tags["tamis.proposal"] == other.hash
    desk.tag(run=f"approve:{old[:12]}")
    assert "names another proposal" in desk.review().said
    with pytest.raises(
        StaleApproval, match=f"is not the open proposal.*superseded in cycle 1.*that is {other.hash[:12]}"
    ):
        desk.act(old)


def test_a_decision_that_meets_another_one_leaves_the_first(desk: Desk) -> None:
    assert f"approved by ada; continue: tamis run {desk.file}" in desk.act(desk.hash[:12].upper())
    assert "approved by ada" in desk.act(desk.hash, by="bob"), "deciding the same again changes nothing"
    with pytest.raises(StaleApproval, match="was decided already: approve by ada"):
        desk.act(desk.hash, by="bob", decision="reject")
    desk.tag(run=f"reject:{desk.hash[:12]}")
    assert desk.review().actor == "ada"
    assert desk.run_tags["tamis.review"] == f"approve:{desk.hash[:12]}"
    assert len(desk.events("approved")) == 1


@pytest.mark.parametrize("by", ["", "  ", "rule:auto", "mlflow:unauthenticated", "prefect:ada"])
def test_only_a_name_is_a_name(by: str) -> None:
    with pytest.raises(BadInput, match=r"--by"):
        named(by)
    assert named("  Ada  L. ") == "Ada L."


def test_nothing_can_be_decided_where_nothing_waits(desk: Desk, tmp_path: Path) -> None:
    desk.act(desk.hash)
    desk.ledger.record_event(1, "promoted")
    line = f"'{desk.hash[:12]}' cannot be decided on: it was decided in cycle 1: approve by ada; see `tamis status`"
    with pytest.raises(StaleApproval, match=re.escape(line)):
        desk.act(desk.hash[:12], by="bob", decision="reject")
    with pytest.raises(StaleApproval, match="no proposal is open"):
        desk.act("0" * 12)
    empty = desk.file.with_name("other.toml")
    empty.write_text('workspace = "nowhere"\n[workload]\nclass = "tiny"\n')
    with pytest.raises(StorageError, match="there is no ledger"):
        decide(empty, Act(desk.hash, "approve", "ada", "cli"))


def test_the_commands_say_it_in_one_line_and_leave_with_2(desk: Desk) -> None:
    ids = desk.file.with_name("struck.txt")
    ids.write_text("5\n99\n")
    done = tamis("approve", desk.hash, "--by", "ada", "--strike-file", ids, "--file", desk.file)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "does not name 99" in done.stderr
    ids.write_text("5\n")
    done = tamis("approve", desk.hash, "--by", "ada", "--strike", 4, "--strike-file", ids, "--file", desk.file)
    assert done.returncode == 0, done.stderr
    assert "without 2 points is proposal" in done.stdout
    status = status_of(desk.file)
    assert (status.state, status.proposed, status.review) == ("approved", 2, "")
    done = tamis("ledger", "why", 4, "--file", desk.file)
    assert "to remove (harmful, score 0.04, threshold 0.2): struck out by ada" in done.stdout
