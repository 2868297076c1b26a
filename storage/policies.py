"""Policies as data, and what of them enters the hash of a proposal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from storage.budgets import Budgets
from storage.files import JSON

Op: TypeAlias = Literal["<", "<=", ">", ">="]

COPY_OF = ": copy of "
"""In the reason of a point that goes because it repeats another: before the id of that one."""


def reason_code(reason: str) -> str:
    """A reason without the point that it names: what many points have in common."""
    return reason.partition(COPY_OF)[0]


@dataclass(frozen=True)
class Condition:
    """`column op threshold`; null never passes."""

    column: str
    op: Op
    threshold: float


@dataclass(frozen=True)
class Rule:
    """A policy as data: a point is a candidate if `column op threshold`; null never is.

    Args:
        policy: Name of the policy.
        reason: Reason code of its proposals.
        column: The score column that is compared.
        op: The comparison.
        threshold: In the unit of `column`; evidence, so it does not enter the proposal hash.
        parameters: What the user set, e.g. {"q": 0.2}; enters the proposal hash.
        also: What must hold besides.
        rank_column: The score column that orders its candidates, smallest first, null last.
        turn: Candidates of a rule of a smaller turn go first, whatever their ranks.
        relabel: The score column of the label that the point gets instead of being removed, where it differs from
            the present one.
        repeats: The score column of the point that a candidate is an exact copy of. The reason names it, and where
            another rule chooses it the copy is no candidate of this one: what it repeats must stay.
    """

    policy: str
    reason: str
    column: str
    op: Op
    threshold: float
    parameters: Mapping[str, JSON] = field(default_factory=dict)
    also: tuple[Condition, ...] = ()
    rank_column: str = "influence"
    turn: int = 0
    relabel: str | None = None
    repeats: str | None = None

    @property
    def columns(self) -> frozenset[str]:
        """The score columns that it reads."""
        named = {self.column, self.rank_column, *(one.column for one in self.also), self.relabel, self.repeats}
        return frozenset(column for column in named if column is not None)


@dataclass(frozen=True)
class Regret:
    """The restoration of points removed earlier that are helpful, in this cycle's scores and in the last one's.

    Args:
        before: Score shards of the cycle before.
        z: How many standard errors above zero the influence must be, both times.
    """

    before: Path
    z: float


def policy_json(rules: Sequence[Rule], budgets: Budgets, regret: Regret | None = None) -> dict[str, JSON]:
    """What the user set, for the proposal hash: names and parameters of rules, budgets, ranks; never a score.

    Budgets that bind nothing are left out, so that a policy of an older version keeps its hash.
    """
    named: list[JSON] = [_named(rule) for rule in sorted(rules, key=lambda rule: rule.policy)]
    if regret is not None:
        named.append({"policy": "regret", "parameters": {"z": regret.z}})
    limits: dict[str, JSON] = {
        "cycle": budgets.cycle,
        "cumulative": budgets.cumulative,
        "per_class": budgets.per_class,
        "minimum_kept": budgets.minimum_kept,
    }
    if budgets.per_group < 1:
        limits["per_group"] = budgets.per_group
    if budgets.minimum_per_class > 0:
        limits["minimum_per_class"] = budgets.minimum_per_class
    return {"rules": named, "budgets": limits, "rank_column": "influence"}


def _named(rule: Rule) -> dict[str, JSON]:
    named: dict[str, JSON] = {"policy": rule.policy, "parameters": dict(rule.parameters)}
    return named if rule.rank_column == "influence" else named | {"rank_column": rule.rank_column}
