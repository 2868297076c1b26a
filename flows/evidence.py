"""`tamis ledger why`: what the ledger, the newest data and the newest scores say of one point."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias

import pyarrow.compute as pc

from flows.config import Config, load
from flows.drops import Drop, dropped_from
from flows.holding_back import held_back
from flows.inspection import open_ledger
from flows.policies import rules_of
from flows.recorded import recorded
from flows.stages import cycle_folder
from storage import score_store
from storage.errors import UnknownPoint
from storage.ledger import Ledger
from storage.points import Manifest, PointId, id_from_text
from storage.policies import Condition, Rule
from storage.records import CycleRecord, Explanation
from storage.standing import standing

Status: TypeAlias = Literal["removed", "relabeled", "restored", "kept"]
STATUS: Mapping[str, Status] = {"remove": "removed", "relabel": "relabeled", "restore": "restored"}
COMPARE = {"<": float.__lt__, "<=": float.__le__, ">": float.__gt__, ">=": float.__ge__}
SHOWN = 5


@dataclass(frozen=True)
class Unmet:
    """A further condition of a rule that does not hold: `column op threshold`."""

    column: str
    value: float | None
    op: str
    threshold: float


@dataclass(frozen=True)
class Verdict:
    """What one rule says of the point: chosen if `column op threshold` and nothing else is unmet; null never holds."""

    policy: str
    column: str
    value: float | None
    op: str
    threshold: float
    chosen: bool
    unmet: tuple[Unmet, ...]


@dataclass(frozen=True)
class Scores:
    """The newest scores of the point.

    Attributes:
        cycle: The cycle that computed them.
        in_train: Whether the point was in training then; if not, influence is what adding it would do.
        influence: Nats, positive = helpful.
        influence_se: Its standard error over queries.
        copy_of: The point in training that it is an exact copy of, if it is one.
        rank: Among the `of` in-train points by influence, most harmful first.
        verdicts: Of the rules that the cycle judged by, whose column the scores have.
        recorded: Whether the ledger tells by which rules it did; without, there are no verdicts.
        held_back: Why it was not proposed although a rule chose it; empty where none did, or where it was proposed.
        helped: Ids and influence of the queries that it helps most.
        harmed: Of those that it harms most.
    """

    cycle: int
    in_train: bool
    influence: float
    influence_se: float
    copy_of: PointId | None
    rank: int
    of: int
    verdicts: tuple[Verdict, ...]
    recorded: bool
    held_back: str
    helped: tuple[tuple[str, float], ...]
    harmed: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Account(Explanation):
    """What is known of a point.

    Attributes:
        status: What was done to it last; `kept` if nothing ever was.
        data: Whether the newest cycle's data set has it: `there`, `other content` (a new point under the same id, which
            nobody removed), `vanished`, or `unknown` where that cycle left no manifest.
        scores: None where no finished scores have it.
        drops: Trainings that went on without it, each for itself alone.
        drops_unknown: Cycle and model of trainings of which nobody can tell any more whether they did.
    """

    status: Status
    data: Literal["there", "other content", "vanished", "unknown"]
    scores: Scores | None
    drops: tuple[Drop, ...]
    drops_unknown: tuple[tuple[int, str], ...]


def account_of(file: Path, text: str) -> Account:
    """Everything known of a point.

    Raises:
        storage.errors.UnknownPoint: Neither the ledger nor the newest data set nor the newest scores know it.
    """
    config, ledger = load(file), open_ledger(file)
    last = ledger.last_cycle()
    if last is None:
        raise UnknownPoint(f"point {text} is unknown: no cycle was opened; `tamis run` opens one")
    point = id_from_text(text, last.id_kind)
    told = _told(ledger, point)
    content = _content(config, last, point)
    scores = _scores(config, ledger, last, point, told)
    if not told.actions and not told.proposals and scores is None and not content:
        raise UnknownPoint(
            f"point {text} is unknown: the data set of cycle {last.cycle} does not have it, and it was never proposed, "
            "removed or restored"
        )
    known = {field.name: getattr(told, field.name) for field in fields(told)}
    newest = told.actions[-1] if told.actions else None
    data: Literal["there", "other content", "vanished", "unknown"] = "there"
    if content is None:
        data = "unknown"
    elif not content:
        data = "vanished"
    elif newest is not None and newest.content != content:
        data = "other content"
    status = STATUS[newest.action] if newest else "kept"
    dropped = dropped_from(config.workspace, ledger, point)
    return Account(**known, status=status, data=data, scores=scores, drops=dropped.drops, drops_unknown=dropped.unknown)


def newest_scores(config: Config, last: CycleRecord) -> tuple[int, Path] | None:
    """The newest cycle whose scores are finished, and their folder."""
    for cycle in range(last.cycle, 0, -1):
        folder = cycle_folder(config, cycle) / "scores"
        if (folder / score_store.MANIFEST).is_file():
            return cycle, folder
    return None


def _told(ledger: Ledger, point: PointId) -> Explanation:
    try:
        return ledger.why(point)
    except UnknownPoint:
        return Explanation(str(point), removed=False, removal=None, actions=(), proposals=())


def _content(config: Config, last: CycleRecord, point: PointId) -> str | None:
    """The content hash of a point in the newest data set, empty if it has none, None if there is no manifest."""
    path = cycle_folder(config, last.cycle) / "manifest.parquet"
    if not path.is_file():
        return None
    table = Manifest.read(path).table
    found: list[str] = table.filter(pc.equal(table["point_id"], point))["content"].to_pylist()
    return found[0] if found else ""


def _scores(config: Config, ledger: Ledger, last: CycleRecord, point: PointId, told: Explanation) -> Scores | None:
    newest = newest_scores(config, last)
    row = standing(newest[1], point) if newest is not None else None
    if newest is None or row is None:
        return None
    by = recorded(ledger, newest[0])
    rules = () if by is None else rules_of(by.pruning)
    verdicts = tuple(_verdict(rule, row) for rule in rules if rule.column in row)
    proposed = any(mention.cycle == newest[0] for mention in told.proposals)
    chosen = any(verdict.chosen for verdict in verdicts) and row["in_train"]
    why_not = ""
    if by is not None and chosen and not proposed:
        why_not = held_back(config, ledger, ledger.cycle(newest[0]), by, point, row)
    tops = [(top["query_id"], top["influence"]) for top in row.get("top_queries") or ()]
    return Scores(
        cycle=newest[0],
        in_train=row["in_train"],
        influence=row["influence"],
        influence_se=row["influence_se"],
        copy_of=row.get("copy_of"),
        rank=row["rank"],
        of=row["of"],
        verdicts=verdicts,
        recorded=by is not None,
        held_back=why_not,
        helped=tuple(top for top in tops if top[1] > 0)[:SHOWN],
        harmed=tuple(top for top in reversed(tops) if top[1] < 0)[:SHOWN],
    )


def _verdict(rule: Rule, row: Mapping[str, Any]) -> Verdict:
    unmet = tuple(
        Unmet(one.column, row.get(one.column), one.op, one.threshold) for one in rule.also if not _holds(one, row)
    )
    chosen = _holds(rule, row) and not unmet
    return Verdict(rule.policy, rule.column, row[rule.column], rule.op, rule.threshold, chosen, unmet)


def _holds(condition: Rule | Condition, row: Mapping[str, Any]) -> bool:
    value = row.get(condition.column)
    return value is not None and COMPARE[condition.op](float(value), float(condition.threshold))
