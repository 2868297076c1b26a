"""The policies of `[pruning] policies`: what each reads, when to use it, and what it costs.

harmful     Signed influence on the query set below zero, beyond its error, and with how the label fits those of the
            nearest queries beyond what trusted queries show. For errors that are consistent and visible in the input,
            which no signal without trusted queries sees. No cost beyond the scores, but it needs a few hundred queries.
mislabeled  The given label is contradicted by models that never saw the point, and by its neighbours. For scattered
            label errors. Costs the fold models: folds x repeats trainings in each of two rounds.
memorized   Harmful in sign, and a fit that rests on the point itself more than those of points that generalize do. For
            a model that is not to keep single points; misses errors that support each other. No cost beyond the scores.
redundant   Exact copies of points that stay, then points on which the fit rests little and whose like stay: drawn by
            self-influence, within each class and group no more than half as much again as over all. For training less
            at about equal accuracy; finds no errors, and no cost beyond the scores. Copies count to the share.
balanced    Points whose steps cancel, hard ones among them, so that the fit stays where it is; in each score shard, and
            there within each class and group no more than half as much again as over all. For leaving out half and
            more, where the easiest are not enough; finds no errors. Costs as many more queries as a shard has points.

The first three are joined: each has its own false-discovery rate, and where a budget binds, the most negative influence
goes first. `redundant` takes what the budgets leave, the least needed first, and `balanced` what that one leaves, in an
order of which every beginning is balanced; what is protected, struck out or over a class budget is missing from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from flows.sections.curation import PruningConfig
from storage.files import JSON
from storage.policies import Condition, Rule


def rules_of(pruning: PruningConfig) -> tuple[Rule, ...]:
    """The policies of a configuration as rules over score columns."""
    return tuple(RULES[policy](pruning) for policy in pruning.policies)


def _harmful(pruning: PruningConfig) -> Rule:
    return _by_influence("harmful", pruning.harmful_q, pruning.agreement)


def _memorized(pruning: PruningConfig) -> Rule:
    return _by_influence("memorized", pruning.memorized_q, pruning.agreement)


def _by_influence(policy: str, q: float, agreement: float) -> Rule:
    parameters: dict[str, JSON] = {"q": q}
    if not agreement:
        return _discovery(policy, q, parameters)
    also = (Condition("agreement", ">=", agreement),)
    return _discovery(policy, q, parameters | {"agreement": agreement}, also)


def _mislabeled(pruning: PruningConfig) -> Rule:
    parameters: dict[str, JSON] = {"q": pruning.mislabeled_q}
    if pruning.mislabeled_action == "remove":
        return _discovery("mislabeled", pruning.mislabeled_q, parameters)
    return _discovery("mislabeled", pruning.mislabeled_q, parameters | {"action": "relabel"}, relabel="suggested_label")


def _discovery(
    policy: str, q: float, parameters: Mapping[str, JSON], also: tuple[Condition, ...] = (), relabel: str | None = None
) -> Rule:
    """A point is a candidate if the smallest rate at which the policy would take it is at most q."""
    return Rule(policy, policy, f"{policy}_q", "<=", q, parameters, also, relabel=relabel)


def _redundant(pruning: PruningConfig) -> Rule:
    share = pruning.redundant_share
    named: dict[str, JSON] = {"share": share}
    column = "redundancy"
    return Rule("redundant", "redundant", column, "<=", share, named, rank_column=column, turn=1, repeats="copy_of")


def _balanced(pruning: PruningConfig) -> Rule:
    share = pruning.balanced_share
    return Rule("balanced", "balanced", "balance", "<=", share, {"share": share}, rank_column="balance", turn=2)


RULES: Mapping[str, Callable[[PruningConfig], Rule]] = {
    "harmful": _harmful,
    "mislabeled": _mislabeled,
    "memorized": _memorized,
    "redundant": _redundant,
    "balanced": _balanced,
}
FOR_LOAD = frozenset({"redundant", "balanced"})
"""Policies that find nothing wrong: without their points there is less to train on."""
