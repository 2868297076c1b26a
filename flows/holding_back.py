"""Why a point that a rule chose was not proposed: found by making the selection of its cycle once more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flows.config import Config
from flows.errors import BadInput
from flows.limits import budgets_of, given_labels
from flows.moving import in_force, manifest_of_cycle
from flows.policies import rules_of
from flows.protection import protected_ids
from flows.recorded import BUDGETS, Recorded
from flows.stages import cycle_folder
from storage import score_store
from storage.errors import StorageError
from storage.ledger import Ledger
from storage.points import Manifest, PointId
from storage.policies import Regret, policy_json
from storage.proposals import Proposal
from storage.records import CycleRecord
from storage.selection import Selection, select


def held_back(
    config: Config, ledger: Ledger, cycle: CycleRecord, by: Recorded, point: PointId, row: Mapping[str, Any]
) -> str:
    """Why a cycle did not propose a point that a rule of it chose; that it cannot be told, where it cannot."""
    pruning, number = by.pruning, cycle.cycle
    if row.get("group") in pruning.protected_groups or point in pruning.protected:
        return "protected"
    if point in ledger.cooldown(number, pruning.cooldown):
        return "cooldown"
    if ledger.proposal(number) is None and not Proposal.exists(cycle_folder(config, number)):
        return f"cycle {number} has not proposed anything yet"
    try:
        selection = _again(config, ledger, cycle, by, point)
    except (BadInput, StorageError) as error:
        return f"why, cannot be told: {error}"
    if selection is None:
        return (
            "why, cannot be told: from what is left of the cycle, and with the protected ids of now, its proposal does "
            "not come out again"
        )
    original = row.get("copy_of")
    if not selection.held_back and original is not None:
        return f"point {original}, which it is a copy of, was chosen by another rule"
    if selection.held_back == "protected":
        return f"protected: {pruning.protected_file} names it"
    key = BUDGETS[selection.held_back]
    return f"the budget pruning.{key} = {getattr(pruning, key):g} had no room left for it"


def _again(config: Config, ledger: Ledger, cycle: CycleRecord, by: Recorded, point: PointId) -> Selection | None:
    """The selection of a cycle, if it is what the ledger has of it."""
    number, pruning = cycle.cycle, by.pruning
    manifest = Manifest.read(manifest_of_cycle(config.workspace, number))
    relabeled = given_labels(manifest, in_force(ledger, number - 1, manifest).relabeled)
    protected, cooldown = protected_ids(pruning, cycle.id_kind), ledger.cooldown(number, pruning.cooldown)
    rules, budgets = rules_of(pruning), budgets_of(pruning, by.proposable, protected, cooldown, relabeled)
    before = cycle_folder(config, number - 1) / "scores"
    regret = Regret(before, pruning.z_restore) if (before / score_store.MANIFEST).is_file() else None
    selection = select(cycle_folder(config, number) / "scores", rules, budgets, regret, asked=point)
    policy = policy_json(rules, budgets, regret)
    made, known = Proposal.build(number, selection, cycle.dataset_sha256, "", policy), ledger.proposal(number)
    if known is None:
        return selection if not made.size else None
    stands = made.hash == known.hash or ledger.left_of(number, made.hash) is not None
    return selection if stands else None
