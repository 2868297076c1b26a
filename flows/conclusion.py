"""The stages that write decisions down: `apply` does what was approved, `conclude` says how it ends, `close` ends it.

Every write is keyed by the cycle and repeatable, so a stage that is run again after a crash changes nothing. The event
that ends the cycle is the last write of all: until it is there, the same command continues this cycle.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from flows.guardrail import Verdict
from flows.launch import Progress
from flows.pruning import Proposed
from flows.retention import discard, outdated
from flows.retraining import Retrained
from flows.review import Reviewed
from flows.scoring import Scored
from flows.stages import Cycle
from flows.training import Trained
from storage import checkpoints
from storage.errors import StorageError
from storage.records import Applied, State
from storage.retention import retire
from storage.tracking import ModelVersion

logger = logging.getLogger("tamis")


@dataclass(frozen=True)
class Concluded:
    """How the cycle ended.

    Attributes:
        state: `promoted`, `rolled_back`, `nothing_to_do` or `expired`.
        reason: One sentence.
        champion: Version of the registered model that is champion at the end, if there is one.
        promoted: The version that becomes it in this cycle, if one does.
    """

    state: State
    reason: str
    champion: int | None
    promoted: ModelVersion | None


def apply(cycle: Cycle, trained: Trained, scored: Scored, proposed: Proposed) -> Applied:
    """Record what the approved proposal does to its points."""
    mislabeled = f"; mislabeled: {scored.estimator['suspicion']}" if scored.classes else ""
    estimator = f"harmful: {scored.estimator['estimator']}{mislabeled}"
    return cycle.ledger.apply_proposal(cycle.number, proposed.hash, cycle.manifest, estimator, trained.digest)


def conclude(
    cycle: Cycle, proposed: Proposed, reviewed: Reviewed | None, retrained: Retrained, verdict: Verdict
) -> Concluded:
    """Register the model that is to be champion, and say how the cycle ends."""
    promoted = None
    if verdict.promote:
        checkpoint = checkpoints.verify(retrained.checkpoints[verdict.promote])
        promoted = cycle.tracker.register(cycle.run, checkpoint, cycle.config.name)
    champion = promoted or cycle.tracker.champion(cycle.config.name)
    state: State = "promoted" if verdict.promote == "challenger" else "rolled_back"
    if not proposed.approved_size:
        state = "expired" if reviewed is not None and reviewed.decision == "expired" else "nothing_to_do"
    reason = verdict.reason if proposed.approved_size else f"{_why_nothing(reviewed)}; {verdict.reason}"
    return Concluded(state, reason, champion.version if champion else None, promoted)


def _why_nothing(reviewed: Reviewed | None) -> str:
    if reviewed is None:
        return "no point is a candidate within the budgets"
    return "nobody decided on the proposal in time" if reviewed.decision == "expired" else "the proposal was rejected"


def close(cycle: Cycle, verdict: Verdict, concluded: Concluded) -> None:
    """Put the promoted model into service, restore what did not prove itself, end the cycle, and make room."""
    if concluded.promoted is not None:
        cycle.tracker.set_champion(concluded.promoted)
    if concluded.state == "rolled_back":
        cycle.ledger.roll_back(cycle.number, "rule:guardrail", concluded.reason)
    else:
        detail = {"reason": concluded.reason, "promoted": verdict.promote, "champion": concluded.champion}
        cycle.ledger.record_event(cycle.number, concluded.state, detail=detail)
    cycle.tracker.anchor(cycle.run, cycle.ledger.head())
    _make_room(cycle)


def _make_room(cycle: Cycle) -> None:
    """Remove what older cycles no longer need; the cycle has ended, so what cannot be removed must not fail it."""
    try:
        keep = cycle.config.training.keep.model_dump()
        retire(cycle.folder.parent, keep, cycle.ledger.cited_checkpoints())
        discard(outdated(cycle.config))
    except (OSError, StorageError) as error:
        logger.warning("files of older cycles stay: %s; the next cycle or `tamis gc` removes them", error)
        cycle.show(Progress(f"files of older cycles stay ({error})", 0, 1))
