"""A person's decision on the open proposal, wherever it was given: into the ledger, then onto the pages in MLflow."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flows.claims import service_url
from flows.config import Config, load
from flows.errors import BadInput
from flows.inspection import open_ledger
from flows.stores import tracker_of
from storage.errors import StaleApproval, StorageError, UnknownPoint
from storage.ledger import Ledger
from storage.points import PointId, id_from_text
from storage.reviews import UNNAMED, OpenProposal, is_named, plain_name


@dataclass(frozen=True)
class Act:
    """What a reviewer does.

    Attributes:
        proposal: The hash, or its first 12 digits or more.
        decision: Approve or reject.
        by: Who.
        how: Where it was given.
        reason: Why.
        strike: Ids of points to be left out of what is approved.
    """

    proposal: str
    decision: Literal["approve", "reject"]
    by: str
    how: str
    reason: str = ""
    strike: tuple[str, ...] = ()


def decide(file: Path, act: Act) -> str:
    """Take a decision into the ledger and onto the pages; the line says what stands and what comes next.

    Raises:
        BadInput: Points are struck out of what is rejected.
        storage.errors.StorageError: The ledger refuses: the hash is not the open proposal's, it was decided the other
            way or has expired, it does not name a point, or the same person approves for a second time.
    """
    if act.strike and act.decision == "reject":
        raise BadInput("points are struck out of what is approved: reject the whole proposal, or approve without them")
    config = load(file)
    ledger = open_ledger(file)
    ledger.require()
    _check_second(ledger, act)
    proposal = act.proposal
    if act.strike:
        proposal = ledger.strike(proposal, _points(ledger, act.strike), act.by, act.how, act.reason).hash
    else:
        ledger.add_review(proposal, act.decision, act.by, act.how, act.reason)
    opened = ledger.open_proposal()
    if opened is None:
        raise StaleApproval(
            f"proposal {act.proposal[:12]} was decided, and its cycle has ended since; see `tamis status`"
        )
    said = _said(file, service_url(config.workspace), act, opened)
    try:
        _show(config, opened)
    except StorageError as error:  # the decision stands, and whoever took it must not think otherwise
        return f"{said}; its pages in MLflow show it once the cycle goes on, now: {error}"
    return said


def named(by: str) -> str:
    """The name of who decides.

    Raises:
        BadInput: It is empty, or reads like a rule's or a page's.
    """
    name = " ".join(by.split())
    if not plain_name(name):
        raise BadInput("--by is empty: name the person who decides")
    if not is_named(name):
        raise BadInput(f"--by {name!r}: names that begin with {', '.join(UNNAMED)} are no person's; name who decides")
    return name


def _check_second(ledger: Ledger, act: Act) -> None:
    """Nobody is two persons."""
    opened = ledger.open_proposal()
    if act.decision == "reject" or act.strike or opened is None or opened.review is not None:
        return
    if opened.record.hash.startswith(act.proposal.strip().lower()) and opened.approved_by(act.by):
        raise StaleApproval(
            f"{act.by} has approved proposal {opened.short} before and counts once; it takes another named person: "
            f"`tamis approve {opened.short} --by NAME`"
        )


def _points(ledger: Ledger, texts: tuple[str, ...]) -> list[PointId]:
    last = ledger.last_cycle()
    try:
        return [id_from_text(text.strip(), last.id_kind if last else "string") for text in texts]
    except UnknownPoint as error:
        raise StaleApproval(f"{error}; nothing was struck and nothing decided") from error


def _show(config: Config, opened: OpenProposal) -> None:
    from storage.review_tags import ReviewTags

    if opened.run is None:
        return
    tracker = tracker_of(config)
    run = tracker.run_of(opened.record.cycle)  # not the ledger's: the store may have been lost since
    if run is None:
        return
    tags = ReviewTags(tracker, run, config.name)
    tags.offer(opened.record.hash)
    if opened.review is not None:
        tags.decided(opened.review.decision, opened.record.hash)
    elif opened.approvers:
        tags.approved_by(", ".join(opened.approvers))


def _said(file: Path, served: str | None, act: Act, opened: OpenProposal) -> str:
    run = f"tamis run {shlex.quote(str(file))}"
    struck = len(set(act.strike))
    left = f" without {struck:,} point{'s' * (struck > 1)} is proposal {opened.short}," if struck else ""
    what = f"proposal {act.proposal[:12]}{left}"
    if opened.review is not None:
        done = "approved" if opened.review.decision == "approve" else "rejected"
        onward = f"the service at {served.removesuffix('/api')} goes on with it" if served else f"continue: {run}"
        return f"{what} {done} by {opened.review.actor}; {onward}"
    return f"{what} {opened.said}; next: tamis approve {opened.short} --by NAME, or {run} for a report that says so"
