"""By which rules and budgets a cycle judged: as the ledger recorded them, whatever tamis.toml says now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from flows.sections.curation import PruningConfig
from storage.ledger import Ledger

RULES: Mapping[str, Mapping[str, str]] = {
    "harmful": {"q": "harmful_q", "agreement": "agreement"},
    "memorized": {"q": "memorized_q", "agreement": "agreement"},
    "mislabeled": {"q": "mislabeled_q", "action": "mislabeled_action"},
    "redundant": {"share": "redundant_share"},
    "balanced": {"share": "balanced_share"},
    "regret": {"z": "z_restore"},
}
"""The key of [pruning] that each parameter of a recorded rule was."""
BUDGETS: Mapping[str, str] = {
    "cycle": "budget",
    "cumulative": "cumulative_budget",
    "per_class": "class_budget",
    "per_group": "group_budget",
    "minimum_kept": "minimum_kept",
    "minimum_per_class": "class_minimum_kept",
}
"""The key of [pruning] that sets each budget."""
UNSAID = {"agreement": 0.0, "mislabeled_action": "remove", "group_budget": 1.0, "class_minimum_kept": 0}
"""What a recorded policy leaves out: what changes nothing."""


@dataclass(frozen=True)
class Recorded:
    """The settings a cycle judged by.

    Attributes:
        pruning: The section.
        proposable: Share of the train set that its proposal could take.
    """

    pruning: PruningConfig
    proposable: float


def recorded(ledger: Ledger, cycle: int) -> Recorded | None:
    """What its newest proposal was made by, for the rest what it was opened with.

    None where the record is of a version whose settings this one does not have.
    """
    config, newest = ledger.cycle(cycle).config, ledger.proposal(cycle)
    given = dict(config.get("pruning", {}))
    if "q" in given:  # of every policy, before each had a rate of its own
        shared = given.pop("q")
        given = {rule["q"]: shared for rule in RULES.values() if "q" in rule} | given
    if "harmful_q" not in given:
        return None
    drops = config.get("training", {}).get("prune_while_learning")
    cap = drops["cap"] if drops else 0.0
    try:
        if newest is not None:
            given |= _policy(newest.policy, tuple(given["policies"]))
            given["budget"] = newest.policy["budgets"]["cycle"] + cap
        pruning = PruningConfig.model_validate(given)
    except (KeyError, ValidationError):  # a rule, a budget or a key that this version does not know
        return None
    return Recorded(pruning, pruning.budget - cap if newest is None else newest.policy["budgets"]["cycle"])


def _policy(policy: Mapping[str, Any], opened: tuple[str, ...]) -> dict[str, Any]:
    """The settings in a recorded policy, which stand there by other names, and sorted."""
    rules = {rule["policy"]: rule["parameters"] for rule in policy["rules"]}
    named = sorted(set(rules) - {"regret"}, key=lambda name: opened.index(name) if name in opened else len(opened))
    said = {RULES[name][key]: value for name, parameters in rules.items() for key, value in parameters.items()}
    budgets = {BUDGETS[name]: value for name, value in policy["budgets"].items() if name != "cycle"}
    return UNSAID | said | budgets | {"policies": tuple(named)}
