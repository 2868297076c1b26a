"""The stage `propose`: which points are to leave, to change their label or to come back, within the budgets.

flows/policies.py says what the policies are, storage/selection.py runs them over the score shards. A point removed
earlier comes back if it is helpful beyond `z_restore` standard errors in this cycle's scores and in the last one's.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pyarrow as pa

from flows.errors import StageFailed
from flows.limits import budgets_of, given_labels
from flows.policies import rules_of
from flows.protection import protected_ids
from flows.scoring import Scored
from flows.stages import Cycle, cycle_folder, once
from storage import score_store
from storage.files import sha256_json
from storage.points import PointId
from storage.policies import Regret, policy_json
from storage.proposals import SEAL, TABLE, Proposal
from storage.records import Terms
from storage.review_tags import ReviewTags
from storage.score_store import ScoreSet
from storage.selection import select

logger = logging.getLogger("tamis")


@dataclass(frozen=True)
class Proposed:
    """The proposal of the cycle.

    Attributes:
        hash: Of the proposal.
        size: Points that it names.
        candidates: Points that each policy named.
        dropped: Candidates left out, by the budget that left them out.
        points: Points scored, those removed in earlier cycles included.
        in_train: Points in training.
        approved_size: Points that are acted on by it: `size`, or 0 once it was rejected.
        actions: Points by what it would do to them.
        struck: Points that reviewers struck out of what was selected.
    """

    hash: str
    size: int
    candidates: Mapping[str, int]
    dropped: Mapping[str, int]
    points: int
    in_train: int
    approved_size: int
    actions: Mapping[str, int] = field(default_factory=dict)
    struck: int = 0


def propose(cycle: Cycle, scored: Scored) -> Proposed:
    """Select within the budgets, and record the proposal in the ledger; or take what reviewers left of it."""
    cooldown = cycle.ledger.cooldown(cycle.number, cycle.config.pruning.cooldown)
    protected = protected_ids(cycle.config.pruning, cycle.manifest.id_kind)
    before = _scored_before(cycle)
    inputs = cycle.section("pruning") | {
        "scores": scored.sha256,
        "before": before.sha256 if before else "",
        "protected": sha256_json(sorted(map(str, protected))),
        "cooldown": sorted(map(str, cooldown)),
    }
    selected = once(
        cycle,
        "propose",
        Proposed,
        inputs,
        lambda: _propose(cycle, scored, before, protected, cooldown),
        decided=cycle.applied,
        intact=lambda kept: _stands(cycle, kept),
    )
    proposed = _left_of(cycle, selected)
    if proposed.size:
        ReviewTags(cycle.tracker, cycle.run, cycle.config.name).offer(proposed.hash)
    return proposed


def _stands(cycle: Cycle, kept: Proposed) -> bool:
    """Whether it is on disk, and the newest in the ledger or what the newest was made of."""
    newest = cycle.ledger.proposal(cycle.number)
    known = newest is not None and newest.hash == kept.hash
    whole = not kept.size or known or cycle.ledger.left_of(cycle.number, kept.hash) is not None
    return Proposal.exists(cycle.folder) and whole


def _propose(
    cycle: Cycle,
    scored: Scored,
    before: ScoreSet | None,
    protected: frozenset[PointId],
    cooldown: frozenset[PointId],
) -> Proposed:
    pruning = cycle.config.pruning
    rules = rules_of(pruning)
    if before is None and cycle.removed:
        logger.warning("cycle %d left no finished scores: no point is proposed for return", cycle.number - 1)
    regret = None if before is None else Regret(before.folder, pruning.z_restore)
    budgets = budgets_of(
        pruning, cycle.config.proposable, protected, cooldown, given_labels(cycle.manifest, cycle.relabeled)
    )
    selection = select(scored.folder, rules, budgets, regret)
    policy = policy_json(rules, budgets, regret)
    proposal = Proposal.build(cycle.number, selection, cycle.dataset_sha256, scored.sha256, policy)
    proposal.write(cycle.folder)
    if proposal.size:
        asked = cycle.config.review
        terms = Terms(selection.in_train, asked.second_person_above, asked.expires_hours)
        cycle.ledger.add_proposal(proposal, terms)
    return Proposed(
        hash=proposal.hash,
        size=proposal.size,
        candidates=selection.candidates,
        dropped=selection.dropped,
        points=selection.points,
        in_train=selection.in_train,
        approved_size=proposal.size,
        actions=proposal.actions,
    )


def _left_of(cycle: Cycle, selected: Proposed) -> Proposed:
    """What reviewers left of what was selected, written over it; what they struck out stays in the ledger."""
    left = cycle.ledger.left_of(cycle.number, selected.hash)
    if left is None:
        return selected
    whole = Proposal.read(cycle.folder)
    kept = set(left.points)
    proposal = replace(whole, rows=whole.rows.filter(pa.array([point in kept for point in whole.points])))
    if proposal.hash != left.hash:
        raise StageFailed(
            f"proposal {left.hash[:12]} is not what is left of {cycle.folder / TABLE}; delete that file and {SEAL} "
            "beside it, and run again"
        )
    if proposal.size < whole.size:
        proposal.write(cycle.folder)
    return replace(
        selected,
        hash=proposal.hash,
        size=proposal.size,
        approved_size=proposal.size,
        actions=proposal.actions,
        struck=selected.size - proposal.size,
    )


def _scored_before(cycle: Cycle) -> ScoreSet | None:
    """The scores of the cycle before, if it was scored."""
    return score_store.load(cycle_folder(cycle.config, cycle.number - 1) / "scores")


def untouchable(cycle: Cycle) -> frozenset[PointId]:
    """All protected points, those of protected groups included."""
    groups = frozenset(cycle.config.pruning.protected_groups)
    rows = zip(cycle.manifest.ids, cycle.manifest.table["group"].to_pylist()) if groups else ()
    protected = protected_ids(cycle.config.pruning, cycle.manifest.id_kind)
    return protected | {point for point, group in rows if group in groups}
