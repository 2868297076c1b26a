"""The gate: a rule, or a person, approves or rejects exactly one proposal, in an act that carries its hash.

A person reviews through `tamis approve HASH --by NAME` (or `reject`), or sets the tag `tamis.review` of the cycle's
MLflow run to `approve:<first 12 of the hash>`. A tag is a request: it enters the ledger when the cycle is run again, as
from an unauthenticated actor, and counts only if it names the open proposal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flows.pruning import Proposed
from flows.stages import Cycle


@dataclass(frozen=True)
class Reviewed:
    """What was decided, by whom and how; `awaiting` until somebody did."""

    decision: Literal["approve", "reject", "awaiting"]
    actor: str = ""
    how: str = ""


def review(cycle: Cycle, proposed: Proposed) -> Reviewed:
    """Read the decision on the proposal, or take it where the configuration lets a rule take it.

    Raises:
        storage.errors.StaleApproval: The MLflow tag names another proposal.
    """
    known = cycle.ledger.review(cycle.number, proposed.hash)
    if known is None and cycle.config.review.mode == "auto":
        reason = f"{proposed.size} of {proposed.in_train} points: within the budgets"
        known = cycle.ledger.add_review(proposed.hash, "approve", "rule:auto", "review.mode = auto", reason)
    elif known is None and (request := cycle.tracker.review_request(cycle.run)) is not None:
        known = cycle.ledger.add_review(
            request.proposal_prefix, request.decision, "mlflow:unauthenticated", "MLflow tag tamis.review", request.text
        )
    if known is None:
        failures = sum(event.state == "failed" for event in cycle.ledger.events(cycle.number))
        cycle.ledger.record_event(cycle.number, "awaiting_review", key=f"{proposed.hash}/{failures}")  # waits again
        return Reviewed("awaiting")
    cycle.tracker.mirror_review(cycle.run, known.decision, known.proposal)
    return Reviewed(known.decision, known.actor, known.how)
