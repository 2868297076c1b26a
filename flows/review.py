"""The gate: a rule, or people, approve or reject exactly one proposal, in an act that carries its hash.

A person reviews through `tamis approve HASH --by NAME` (or `reject`), through the form of the Prefect deployment
(flows/approval.py), or sets the tag `tamis.review` of the cycle's MLflow run, or of the baseline's model version, to
`approve:<first 12 of the hash>`. A tag is a request: it enters the ledger when the cycle is run again, as from an
unauthenticated actor. One that does not count is answered in the tag `tamis.review_refused`, and the cycle waits on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flows.pruning import Proposed
from flows.stages import Cycle
from flows.training import Trained
from flows.waiting import reminder_due
from storage import checkpoints
from storage.connection import utc_now
from storage.errors import StaleApproval
from storage.records import ReviewRecord
from storage.review_tags import Refusal, ReviewTags
from storage.reviews import EXPIRY, OpenProposal


@dataclass(frozen=True)
class Reviewed:
    """What was decided, by whom and how.

    Attributes:
        decision: `awaiting` until somebody decided; `expired` if nobody did in time.
        actor: Who.
        how: Where.
        said: What is missing, and why what somebody wrote does not count; empty if nothing is to be said.
        tag: The tag that would approve; empty where none can.
    """

    decision: Literal["approve", "reject", "awaiting", "expired"]
    actor: str = ""
    how: str = ""
    said: str = ""
    tag: str = ""


def review(cycle: Cycle, trained: Trained, proposed: Proposed) -> Reviewed:
    """Read the decision on the proposal, or take it where the configuration lets a rule take it."""
    tags = ReviewTags(cycle.tracker, cycle.run, cycle.config.name)
    opened = cycle.ledger.open_proposal()
    if opened is None or opened.record.hash != proposed.hash:
        raise StaleApproval(
            f"proposal {proposed.hash[:12]} is not the open one of cycle {cycle.number} any more; run again"
        )
    if opened.lapsed(utc_now()) and cycle.ledger.expire(cycle.number):
        return Reviewed("expired", EXPIRY, "review.expires_hours")
    known = opened.review
    if known is None and cycle.config.review.mode == "auto" and opened.persons == 1:
        reason = f"{proposed.size} of {proposed.in_train} points: within the budgets"
        known = cycle.ledger.add_review(proposed.hash, "approve", "rule:auto", "review.mode = auto", reason)
    refused = ""
    if known is None:
        _offer(cycle, trained, tags, opened)
        known, refused = _asked(cycle, tags, opened)
        known = known or cycle.ledger.review(cycle.number, proposed.hash)  # decided on while the pages were written
    if known is None:
        _wait(cycle, tags, opened)
        tag = f"approve:{opened.short}" if opened.persons == 1 else ""
        return Reviewed("awaiting", said="; ".join(filter(None, [opened.said, refused])), tag=tag)
    tags.decided(known.decision, known.proposal)
    return Reviewed(known.decision, known.actor, known.how)


def _offer(cycle: Cycle, trained: Trained, tags: ReviewTags, opened: OpenProposal) -> None:
    """Make the baseline a version of the registered model, whose page a reviewer may use as well as the run's."""
    version = cycle.tracker.register(cycle.run, checkpoints.verify(trained.checkpoints[-1]), cycle.config.name)
    tags.offer(opened.record.hash, version)
    how = f"set the tag `tamis.review` here or there to `approve:{opened.short}` or `reject:{opened.short}`"
    if opened.persons > 1:
        how = f"then decide by `tamis approve {opened.short} --by NAME`, as another person must, or by the form"
    cycle.tracker.describe_version(
        version,
        f"The baseline of cycle {cycle.number}, on the whole current set. Proposal `{opened.short}` of "
        f"{opened.record.size:,} points waits for a decision: see the report of this version's run, {how}.",
    )


def _asked(cycle: Cycle, tags: ReviewTags, opened: OpenProposal) -> tuple[ReviewRecord | None, str]:
    """What the ledger makes of the tags: a decision, or why they are none."""
    asked = tags.asked(opened)
    if asked is None or isinstance(asked, Refusal):
        line = asked.line if asked else ""
        tags.refuse(line)
        return None, line
    by = "mlflow:unauthenticated"
    try:
        return cycle.ledger.add_review(opened.record.hash, asked.decision, by, asked.how, asked.text), ""
    except StaleApproval as error:  # somebody decided since it was looked at
        return cycle.ledger.review(cycle.number, opened.record.hash), str(error)


def _wait(cycle: Cycle, tags: ReviewTags, opened: OpenProposal) -> None:
    if opened.approvers:
        tags.approved_by(", ".join(opened.approvers))
    if reminder_due(cycle.config, opened):
        detail = {"proposal": opened.record.hash, "waits_for": opened.said or "a decision"}
        cycle.ledger.record_event(
            cycle.number, "reminded", detail=detail, key=f"{opened.record.hash}/{opened.reminders + 1}"
        )
    failures = sum(event.state == "failed" for event in cycle.ledger.events(cycle.number))
    again = failures + len(opened.approvers) + opened.times - 1  # rises with whatever makes it wait anew
    cycle.ledger.record_event(cycle.number, "awaiting_review", key=f"{opened.record.hash}/{again}")
