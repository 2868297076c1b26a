"""Whether a cycle that waits for a person has something to go on with; read, never written, so that a service may poll.

Whatever the reason, one thing is to be done: run the cycle again. It takes the decision into the ledger, tells the
reviewer why a tag does not count, closes what has expired, reminds, or shows the second person what the first one did.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, TypeAlias

from flows.config import Config
from flows.stores import ledger_of, tracker_of
from storage.connection import utc_now
from storage.review_tags import Refusal, ReviewTags
from storage.reviews import OpenProposal

Reason: TypeAlias = Literal["approved", "rejected", "tag", "expired", "second", "reminder"]
"""`tag`: a tag that the ledger has not seen, or that is to be refused; `second`: the first of two persons has approved,
or has struck points out, and the second one is to see it."""


@dataclass(frozen=True)
class Pending:
    """A cycle that is to be run again.

    Attributes:
        cycle: Its number.
        proposal: The full hash of its open proposal.
        reason: What there is to go on with.
    """

    cycle: int
    proposal: str
    reason: Reason


def pending(config: Config) -> Pending | None:
    """What the open proposal of a workspace has to go on with; None where nothing, or nothing waits.

    A cycle that is at work, or failed before it asked, waits for no person: that is not said here.

    Raises:
        storage.errors.StorageError: The ledger is held for too long, or MLflow does not answer; ask again.
    """
    ledger = ledger_of(config)
    opened = ledger.open_proposal() if ledger.exists else None
    if opened is None:
        return None
    state: str = ledger.state(opened.record.cycle)
    if state == "failed" and opened.asked and opened.review is None:
        state = "awaiting_review"  # of a run that was to remind, or to read a tag: the question stands
    reason = _reason(config, opened, state)
    return None if reason is None else Pending(opened.record.cycle, opened.record.hash, reason)


def _reason(config: Config, opened: OpenProposal, state: str) -> Reason | None:
    if opened.review is not None:
        decided: Reason = "approved" if opened.review.decision == "approve" else "rejected"
        return decided if state in (decided, "awaiting_review") else None  # which may have been asked meanwhile
    if state not in ("awaiting_review", "proposed", "expired"):
        return None
    if opened.lapsed(utc_now()):
        return "expired"
    if opened.unshown:
        return "second"
    if state != "awaiting_review":
        return None
    if (run := opened.run) is not None:
        asked = ReviewTags(tracker_of(config), run, config.name).asked(opened)
        if asked is not None and not (isinstance(asked, Refusal) and asked.shown):
            return "tag"
    return "reminder" if reminder_due(config, opened) else None


def reminder_due(config: Config, opened: OpenProposal) -> bool:
    """Whether nobody was asked or reminded for as long as `review.remind_hours`."""
    hours = config.review.remind_hours
    return hours is not None and opened.silent(utc_now()) >= timedelta(hours=hours)
