"""`tamis ledger diff` and `regret`: two data sets against each other, and old removals against new scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from flows.config import Config, load
from flows.errors import BadInput
from flows.evidence import STATUS, newest_scores
from flows.inspection import open_ledger
from flows.stages import cycle_folder
from storage.points import IdKind, Manifest, id_from_text
from storage.policies import reason_code
from storage.records import ActionRecord
from storage.selection import rows_of

Z = 1.645
"""One-sided 95 %: so many standard errors above zero an influence counts as helpful."""


@dataclass(frozen=True)
class Moved:
    """One point that is not in both data sets alike; `label` is the given one, None where there is none."""

    point_id: str
    change: str
    reason: str
    label: int | None
    new_label: int | None
    cycle: int


@dataclass(frozen=True)
class Counted:
    """Points of one change, reason and given label."""

    change: str
    reason: str
    label: int | None
    points: int


@dataclass(frozen=True)
class Difference:
    """What was done to points from the data set as of cycle `before` (0: as first given) to that of `after`."""

    before: int
    after: int
    counts: tuple[Counted, ...]
    points: tuple[Moved, ...]


@dataclass(frozen=True)
class Regret:
    """A removed point that would help if it were added: influence in nats, z = influence / its standard error."""

    point_id: str
    cycle: int
    reason: str
    influence: float
    influence_se: float
    z: float


@dataclass(frozen=True)
class Regrets:
    """Removed points that the scores of a cycle call helpful, largest z first.

    Attributes:
        scored: The cycle of the scores.
        removed: Removed points that were scored then.
        by_cycle: Of the points, by the cycle that removed them.
    """

    scored: int
    removed: int
    by_cycle: Mapping[int, int]
    points: tuple[Regret, ...]


def difference(file: Path, before: int, after: int) -> Difference:
    """What the cycles after `before` and up to `after` did to points, as far as it still stood then.

    Raises:
        BadInput: The first cycle is not the earlier one.
        storage.errors.CycleConflict: A cycle was never opened.
    """
    if not 0 <= before < after:
        raise BadInput(f"ledger diff {before} {after}: give the earlier cycle first, 0 for the data as first given")
    config, ledger = load(file), open_ledger(file)
    for cycle in (before, after):
        if cycle:
            ledger.cycle(cycle)
    then = {action.point_id: _state(action) for action in ledger.newest_actions(before)}
    moved = [
        action
        for action in ledger.newest_actions(after)
        if _state(action) != then.get(action.point_id, ("restore", None))
    ]
    labels = _labels(config, moved)
    points = tuple(
        Moved(a.point_id, STATUS[a.action], a.reason, labels.get((a.cycle, a.point_id)), a.new_label, a.cycle)
        for a in moved
    )
    counts = Counter((point.change, reason_code(point.reason), point.label) for point in points)
    ordered = sorted(counts.items(), key=lambda item: (item[0][:2], -1 if item[0][2] is None else item[0][2]))
    return Difference(before, after, tuple(Counted(*key, count) for key, count in ordered), points)


def regrets(file: Path) -> Regrets:
    """The removed points whose newest influence is above zero beyond its error; they are only named.

    Raises:
        BadInput: There are no finished scores.
    """
    config, ledger = load(file), open_ledger(file)
    last = ledger.last_cycle()
    newest = newest_scores(config, last) if last else None
    if last is None or newest is None:
        raise BadInput(f"workspace {config.workspace}: no cycle was scored in it yet; `tamis run` scores one")
    return regretted(ledger.newest_actions(), last.id_kind, *newest)


def regretted(actions: Iterable[ActionRecord], kind: IdKind, scored: int, folder: Path) -> Regrets:
    """The points that actions left removed and that the scores of a cycle, in a folder, call helpful."""
    removed = {id_from_text(action.point_id, kind): action for action in actions if action.action == "remove"}
    rows = rows_of(folder, list(removed), ["in_train", "influence", "influence_se"]).to_pylist()
    out = [row for row in rows if not row["in_train"]]
    points = [
        _regret(removed[row["point_id"]], row["influence"], row["influence_se"])
        for row in out
        if row["influence_se"] > 0 and row["influence"] > Z * row["influence_se"]
    ]
    points.sort(key=lambda point: (-point.z, point.point_id))
    by_cycle = Counter(point.cycle for point in points)
    return Regrets(scored, len(out), dict(sorted(by_cycle.items())), tuple(points))


def _regret(action: ActionRecord, influence: float, error: float) -> Regret:
    return Regret(action.point_id, action.cycle, action.reason, influence, error, influence / error)


def _state(action: ActionRecord) -> tuple[str, int | None]:
    return action.action, action.new_label


def _labels(config: Config, actions: Iterable[ActionRecord]) -> dict[tuple[int, str], int | None]:
    """The given label of each point in the data set of the cycle that acted on it, where that is still on disk."""
    found: dict[tuple[int, str], int | None] = {}
    for cycle in {action.cycle for action in actions}:
        path = cycle_folder(config, cycle) / "manifest.parquet"
        if path.is_file():
            table = Manifest.read(path).table
            labels = zip(table["point_id"].to_pylist(), table["label"].to_pylist())
            found |= {(cycle, str(point)): label for point, label in labels}
    return found
