"""The stages that write decisions down: `apply` enters approved removals; `conclude` promotes or rolls back.

Every write is keyed by the cycle and repeatable, so a stage that is run again after a crash changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from flows.guardrail import Verdict
from flows.pruning import Proposed
from flows.retraining import Retrained
from flows.scoring import Scored
from flows.stages import Cycle
from flows.training import Trained
from storage import checkpoints
from storage.files import JSON
from storage.records import State


@dataclass(frozen=True)
class Concluded:
    """How the cycle ended.

    Attributes:
        state: `promoted`, `rolled_back`, `nothing_to_do` or `awaiting_review`.
        reason: One sentence.
        champion: Version of the registered model that is champion now, if there is one.
    """

    state: State
    reason: str
    champion: int | None


def apply(cycle: Cycle, trained: Trained, scored: Scored, proposed: Proposed) -> int:
    """Record the approved removals; returns how many points the proposal removes."""
    return cycle.ledger.apply_removals(
        cycle.number, proposed.hash, cycle.manifest, str(scored.estimator["estimator"]), trained.digest
    )


def conclude(cycle: Cycle, proposed: Proposed, retrained: Retrained, verdict: Verdict) -> Concluded:
    """Make the promoted model champion, restore what did not prove itself, and close the cycle."""
    champion = cycle.tracker.champion(cycle.config.name)
    if verdict.promote:
        checkpoint = checkpoints.verify(retrained.checkpoints[verdict.promote])
        champion = cycle.tracker.register(cycle.run, checkpoint, cycle.config.name)
        cycle.tracker.set_champion(champion)
    version = champion.version if champion else None
    reason = verdict.reason if proposed.approved_size else f"{_why_nothing(proposed)}; {verdict.reason}"
    detail: dict[str, JSON] = {"reason": reason, "promoted": verdict.promote, "champion": version}
    state: State
    if not proposed.approved_size:
        state = "nothing_to_do"
        cycle.ledger.record_event(cycle.number, state, detail=detail)
    elif verdict.promote == "challenger":
        state = "promoted"
        cycle.ledger.record_event(cycle.number, state, detail=detail)
    else:
        state = "rolled_back"
        cycle.ledger.roll_back(cycle.number, "rule:guardrail", reason)
    return Concluded(state, reason, version)


def _why_nothing(proposed: Proposed) -> str:
    return "the proposal was rejected" if proposed.size else "no point is proposed"
