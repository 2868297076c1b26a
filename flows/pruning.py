"""The stage `propose`: policies and budgets as data. storage/selection.py runs them over the score shards.

`harmful` takes points whose signed influence on the query set is below zero beyond its error; use it for errors that
are consistent and visible in the input, which no signal without trusted queries sees. `mislabeled` takes points whose
given label the models that never saw the point, and its neighbours, contradict; use it for scattered label errors. Each
policy has its own false-discovery rate: a point is a candidate if its q-value, the smallest rate at which its policy
would take it, is at most `q`. The shipped default joins the two, since each is blind to the harm that the other sees.
Where a budget binds, the most negative influence goes first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flows.scoring import Scored
from flows.sections.curation import PruningConfig
from flows.stages import Cycle, once
from storage.points import PointId
from storage.proposals import Proposal
from storage.selection import Budgets, Rule, policy_json, select


@dataclass(frozen=True)
class Proposed:
    """The proposal of the cycle.

    Attributes:
        hash: Of the proposal.
        size: Points it would remove.
        candidates: Points that each policy named.
        dropped: Candidates left out, by the budget that left them out.
        points: Points scored, those removed in earlier cycles included.
        in_train: Points in training.
        approved_size: Points that are removed by it: `size`, or 0 once it was rejected.
    """

    hash: str
    size: int
    candidates: Mapping[str, int]
    dropped: Mapping[str, int]
    points: int
    in_train: int
    approved_size: int


Q_VALUES: Mapping[str, str] = {"harmful": "harmful_q", "mislabeled": "mislabeled_q"}
"""Policy to the column of its q-values."""


def rules_of(pruning: PruningConfig) -> tuple[Rule, ...]:
    """The policies of a configuration as rules over score columns."""
    return tuple(
        Rule(
            policy=policy,
            reason=policy,
            column=Q_VALUES[policy],
            op="<=",
            threshold=pruning.q,
            parameters={"q": pruning.q},
        )
        for policy in pruning.policies
    )


def propose(cycle: Cycle, scored: Scored) -> Proposed:
    """Select what to remove, within the budgets, and record the proposal in the ledger."""
    pruning = cycle.config.pruning
    cooldown = cycle.ledger.cooldown(cycle.number, pruning.cooldown)
    inputs = cycle.section("pruning") | {
        "scores": scored.sha256,
        "cooldown": [str(point) for point in sorted(cooldown, key=str)],
    }
    return once(
        cycle,
        "propose",
        Proposed,
        inputs,
        lambda: _propose(cycle, scored, cooldown),
        decided=cycle.applied,
        intact=lambda _: Proposal.exists(cycle.folder),
    )


def _propose(cycle: Cycle, scored: Scored, cooldown: frozenset[PointId]) -> Proposed:
    pruning = cycle.config.pruning
    rules = rules_of(pruning)
    budgets = Budgets(
        cycle=cycle.config.proposable,
        cumulative=pruning.cumulative_budget,
        per_class=pruning.class_budget,
        protected=frozenset(pruning.protected),
        cooldown=cooldown,
    )
    selection = select(scored.folder, rules, budgets)
    proposal = Proposal.build(cycle.number, selection, cycle.dataset_sha256, scored.sha256, policy_json(rules, budgets))
    proposal.write(cycle.folder)
    if proposal.size:
        cycle.ledger.add_proposal(proposal)
        cycle.tracker.propose(cycle.run, proposal.hash)
    return Proposed(
        hash=proposal.hash,
        size=proposal.size,
        candidates=selection.candidates,
        dropped=selection.dropped,
        points=selection.points,
        in_train=selection.in_train,
        approved_size=proposal.size,
    )
