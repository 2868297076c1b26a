"""What a review may have to fulfil, and leave out: a second person, a time, and points that are struck out."""

import re
from dataclasses import replace

import pytest

from flows.config import load
from flows.decision import named
from flows.errors import BadInput
from flows.inspection import status_of
from flows.summary import _open_reason
from storage.errors import ServerUnusable, StaleApproval
from storage.records import Terms
from storage.reviews import is_named
from tests.flows.desk import POINTS, Desk, Opened
from tests.flows.helpers import write_toml


def test_two_persons_above_the_share_and_one_below(pair: Desk) -> None:
    said = status_of(pair.file).review
    assert said == "two named persons must approve (more than 0.05 of the train set)"
    line = pair.act(pair.hash, by="ada")
    assert "approved by ada; one more approval is needed, by another named person" in line
    assert f"tamis approve {pair.hash[:12]} --by NAME" in line
    assert (pair.ledger.state(1), pair.ledger.review(1, pair.hash)) == ("awaiting_review", None)
    assert pair.run_tags["tamis.approved_by"] == pair.version_tags["tamis.approved_by"] == "ada"
    assert status_of(pair.file).review.startswith("approved by ada; one more")
    assert pair.review().said.startswith("approved by ada; one more")
    assert "approved by ada and grace" in pair.act(pair.hash, by="grace")
    assert pair.review().actor == "ada and grace"
    assert [event.actor for event in pair.events("endorsed")] == ["ada", "grace"]
    assert [event.actor for event in pair.events("approved")] == ["ada and grace"]
    assert pair.ledger.verify().holds


@pytest.mark.parametrize("again", ["ADA", " Ada ", "\uff21da", "a\u200bda", "\u2066ada\u2069"])
def test_the_same_person_counts_once(pair: Desk, again: str) -> None:
    pair.act(pair.hash, by="ada")
    with pytest.raises(StaleApproval, match=r"has approved proposal \w{12} before and counts once"):
        pair.act(pair.hash[:12], by=again)
    assert pair.ledger.add_review(pair.hash, "approve", again, "cli") is None, "nor in the ledger"
    assert len(pair.events("endorsed")) == 1
    assert pair.review().decision == "awaiting"


@pytest.mark.parametrize("by", ["rule:auto", "Rule:auto", "\uff52ule:auto", "r\u200bule:auto", "prefect\uff1ax"])
def test_a_name_that_reads_like_a_rules_or_a_pages_is_no_persons_however_it_is_written(by: str) -> None:
    with pytest.raises(BadInput, match="are no person's"):
        named(by)
    assert not is_named(by)


@pytest.mark.parametrize("by", ["", "  ", "\u200b", "\u2060 \ufeff"])
def test_a_name_of_which_nothing_can_be_seen_is_none(by: str) -> None:
    with pytest.raises(BadInput, match="--by is empty"):
        named(by)
    assert not is_named(by)


def test_a_decision_stands_and_is_said_to_although_mlflow_is_away(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> None:
        raise ServerUnusable("MLflow does not answer")

    with monkeypatch.context() as patch:
        patch.setattr("flows.decision.tracker_of", away)
        line = desk.act(desk.hash)
    assert f"proposal {desk.hash[:12]} approved by ada; continue: tamis run" in line
    assert line.endswith("its pages in MLflow show it once the cycle goes on, now: MLflow does not answer")
    assert "tamis.review" not in desk.run_tags
    assert desk.review().decision == "approve"
    assert desk.run_tags["tamis.review"] == desk.version_tags["tamis.review"] == f"approve:{desk.hash[:12]}"


def test_a_tag_is_no_second_person_and_no_first_one_but_it_can_reject(pair: Desk) -> None:
    pair.tag(run=f"approve:{pair.hash[:12]}")
    found = pair.review()
    assert found.decision == "awaiting"
    assert "a tag names nobody" in pair.run_tags["tamis.review_refused"]
    pair.act(pair.hash, by="ada")
    assert pair.review().decision == "awaiting"
    pair.tag(run=f"reject:{pair.hash[:12]}")
    assert pair.review().decision == "reject"


@pytest.mark.parametrize("by", ["grace", "ada"])
def test_where_reviewers_disagree_the_rejection_wins(pair: Desk, by: str) -> None:
    pair.act(pair.hash, by="ada")
    assert f"rejected by {by}" in pair.act(pair.hash, by=by, decision="reject")
    with pytest.raises(StaleApproval, match=f"was decided already: reject by {by}"):
        pair.act(pair.hash, by="linus")
    assert pair.review().decision == "reject"


def test_terms_are_those_of_the_proposal_whatever_the_settings_say_later(pair: Desk) -> None:
    pair.file.write_text(pair.file.read_text().replace("second_person_above = 0.05", "second_person_above = 1.0"))
    assert "one more approval" in pair.act(pair.hash)


def test_points_struck_out_make_a_new_proposal_that_the_reviewer_approves_in_one_act(desk: Desk) -> None:
    line = desk.act(desk.hash, strike=("4", "6"))
    left = desk.ledger.proposal(1)
    assert left is not None
    assert (left.size, left.hash != desk.hash) == (2, True)
    assert line.startswith(f"proposal {desk.hash[:12]} without 2 points is proposal {left.hash[:12]}, approved by ada")
    *_, superseded, proposed, approved = desk.ledger.events(1)
    assert (superseded.state, superseded.actor) == ("superseded", "ada")
    assert superseded.detail["by"] == left.hash
    assert (superseded.detail["struck"], superseded.detail["reason"]) == (2, "because")
    assert (proposed.state, proposed.actor, proposed.detail["proposal"]) == ("proposed", "ada", left.hash)
    assert (approved.state, approved.actor, approved.detail["proposal"]) == ("approved", "ada", left.hash)
    assert desk.run_tags["tamis.review"] == desk.version_tags["tamis.review"] == f"approve:{left.hash[:12]}"
    assert desk.run_tags["tamis.proposal"] == left.hash
    assert desk.ledger.cooldown(2, 1) == {4, 6}, "they rest like what was rejected"
    assert desk.ledger.verify().holds


@pytest.mark.parametrize(
    ("strike", "line"),
    [
        (("17",), "does not name 17; nothing was struck and nothing decided"),
        (("4", "100", "17"), "does not name 100, 17;"),
        (tuple(map(str, range(10, 30))), "does not name 10, 11, 12, 13, 14 and 15 more;"),
        (("four",), "'four' is unknown: the ids of this data set are integers; nothing was struck"),
        (tuple(map(str, POINTS)), "all 4 points of proposal"),
    ],
)
def test_what_cannot_be_struck_out_is_said_and_nothing_is_decided(
    one: Desk, strike: tuple[str, ...], line: str
) -> None:
    head = one.ledger.head()
    with pytest.raises(StaleApproval, match=re.escape(line)):
        one.act(one.hash, strike=strike)
    assert one.ledger.head() == head


def test_a_rejection_strikes_nothing_out(desk: Desk) -> None:
    with pytest.raises(BadInput, match="points are struck out of what is approved"):
        desk.act(desk.hash, decision="reject", strike=("4",))


def test_striking_the_same_again_changes_nothing_and_something_else_is_refused(desk: Desk) -> None:
    line = desk.act(desk.hash, strike=("4",))
    head = desk.ledger.head()
    assert desk.act(desk.hash, strike=("4", "4")) == line, "as after a kill"
    assert desk.ledger.head() == head
    with pytest.raises(StaleApproval, match="ada struck points out of it in cycle 1 and made"):
        desk.act(desk.hash, strike=("5",))
    with pytest.raises(StaleApproval, match="ada struck points out of it"):
        desk.act(desk.hash, by="bob")


def test_what_is_left_takes_two_persons_if_it_is_still_above_the_share(pair: Desk) -> None:
    pair.act(pair.hash, by="grace")
    opened = pair.ledger.open_proposal()
    assert opened is not None
    assert "two named persons" not in pair.act(pair.hash, by="ada", strike=("4",)), "3 of 60 are 5 %, not above it"
    left = pair.ledger.proposal(1)
    assert left is not None
    assert (found := pair.ledger.review(1, left.hash)) is not None
    assert found.actor == "ada"


def test_a_first_approval_of_the_whole_is_none_of_what_is_left(opened: Opened) -> None:
    desk = opened(second_person_above=0.01)
    desk.review()
    desk.act(desk.hash, by="grace")
    line = desk.act(desk.hash, by="ada", strike=("4",))
    left = desk.ledger.proposal(1)
    assert left is not None
    assert "approved by ada; one more approval is needed" in line
    assert f"tamis approve {left.hash[:12]} --by NAME" in line
    assert desk.pending() == "second"
    assert "approved by ada and grace" in desk.act(left.hash, by="grace")


def test_a_point_is_told_that_it_was_struck_out_and_the_others_that_they_moved_on(desk: Desk) -> None:
    desk.act(desk.hash, strike=("4",))
    [struck] = desk.ledger.why(4).proposals
    assert (struck.decision, struck.actor) == ("strike", "ada")
    first, second = desk.ledger.why(5).proposals
    assert (first.decision, first.actor) == ("supersede", "ada")
    assert (second.decision, second.actor) == ("approve", "ada")


def test_nobody_decides_on_what_has_expired(opened: Opened) -> None:
    desk = opened(expires_hours=1e-7)
    with pytest.raises(StaleApproval, match=r"expired at \d{4}-\d\d-\d\d \d\d:\d\d UTC, 1e-07 h after it was proposed"):
        desk.act(desk.hash)
    with pytest.raises(StaleApproval, match="expired at"):
        desk.act(desk.hash, strike=("4",))
    assert desk.review().decision == "expired"
    assert desk.review().decision == "expired", "the second time, as after a kill"
    [event] = desk.events("expired")
    assert (event.actor, event.detail) == ("rule:expiry", {"after_hours": 1e-7, "proposal": desk.hash})
    assert desk.ledger.unfinished_cycle() is not None, "until its baseline is judged"
    desk.ledger.record_event(1, "expired")
    assert desk.ledger.unfinished_cycle() is None
    with pytest.raises(StaleApproval, match=r"it expired in cycle 1 after 1e-07 h without a decision; see `tamis"):
        desk.act(desk.hash)
    assert desk.ledger.why(3).proposals[0].decision == "expire"
    assert desk.ledger.cooldown(2, 1) == frozenset(), "nobody has judged them"


def test_a_tag_does_not_wake_what_has_expired(opened: Opened) -> None:
    desk = opened(expires_hours=1e-7)
    desk.tag(run=f"approve:{desk.hash[:12]}")
    assert desk.review().decision == "expired"
    assert desk.ledger.review(1, desk.hash) is None


def test_a_decision_in_time_stands_after_the_time(opened: Opened) -> None:
    desk = opened(expires_hours=1000)
    assert "expires at" in status_of(desk.file).review
    desk.act(desk.hash)
    opened_now = desk.ledger.open_proposal()
    assert opened_now is not None
    late = replace(opened_now, terms=Terms(60, None, 1e-7))
    assert not late.lapsed(late.events[-1].event_at)


def test_before_anybody_decides_it_is_said_that_the_holdout_set_is_worn_out_and_an_approval_undone(desk: Desk) -> None:
    seen = replace(desk.cycle, digests={"holdout": "h"})
    worn = replace(seen, config=load(write_toml(desk.file.parent, dataset="blobs", guardrail={"max_looks": 1})))
    waits = "4 points wait for `tamis approve` or `tamis reject`"
    assert _open_reason(worn, desk.proposed, desk.review()) == waits
    desk.ledger.record_event(1, "judged", detail={"holdout": "h", "by": "ada"}, key="by hand")
    assert _open_reason(seen, desk.proposed, desk.review()) == waits
    said = _open_reason(worn, desk.proposed, desk.review())
    assert said.startswith(f"{waits}, but an approval would be undone: ")
    assert "guardrail.max_looks = 1: nothing is promoted until the workload gives a fresh one" in said
