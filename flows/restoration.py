"""`tamis ledger restore`: which points come back."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc

from flows.config import Config, load
from flows.decision import named
from flows.errors import BadInput
from flows.inspection import open_ledger
from flows.stages import cycle_folder
from storage.id_files import read_ids
from storage.ledger import Ledger
from storage.points import Manifest, PointId, id_from_text
from storage.records import ActionRecord
from storage.score_store import shards
from storage.selection import rows_of

SHOWN = 5


@dataclass(frozen=True)
class Choice:
    """What the points to restore have in common: all that is given, and at least one of it.

    Attributes:
        points: Their ids.
        file: Where their ids stand.
        label: Their given label.
        cycle: The cycle that removed or relabelled them.
        query: A query that stood among those they harmed most when it did.
    """

    points: tuple[str, ...] = ()
    file: Path | None = None
    label: int | None = None
    cycle: int | None = None
    query: str | None = None


def restore(file: Path, choice: Choice, by: str, reason: str, *, dry_run: bool = False) -> str:
    """Bring points back; they are in the train set as given from the next cycle on.

    Raises:
        BadInput: Nothing is given.
        storage.errors.CycleConflict: The cycle was never opened.
        storage.errors.NotRemoved: A point given by its id is neither removed nor relabelled; then none is restored.
    """
    if choice == Choice():
        raise BadInput("which points? give ids, --from-file, --class, --cycle or --query; all that is given must hold")
    config, ledger, who = load(file), open_ledger(file), named(by)
    if choice.cycle is not None:
        ledger.cycle(choice.cycle)  # refuses one that was never opened
    asked = [*choice.points, *(read_ids(choice.file) if choice.file else ())]
    if asked:
        ledger.check_changed(asked)
    found = _chosen(config, ledger, choice, frozenset(asked))
    gone = _vanished(config, ledger, found)
    if dry_run:
        return f"{_points(len(found))} would be restored{_said(gone)}"
    if not found:
        return f"no point is chosen, none restored; see `tamis ledger log --file {shlex.quote(str(file))}`"
    count = ledger.restore(found, who, reason)
    return f"{_points(count)} restored; in the train set from the next cycle on{_said(gone)}"


def _points(count: int) -> str:
    return f"{count:,} point{'s' * (count != 1)}"


def _said(gone: list[str]) -> str:
    if not gone:
        return ""
    more = ", …" if len(gone) > SHOWN else ""
    return f"; no longer in the data set, so back only when it has them again: {', '.join(gone[:SHOWN])}{more}"


def _chosen(config: Config, ledger: Ledger, choice: Choice, asked: frozenset[str]) -> list[str]:
    last = ledger.last_cycle()
    if last is None:
        return []
    standing = [
        action
        for action in ledger.newest_actions()
        if action.action != "restore"
        and (not asked or action.point_id in asked)
        and choice.cycle in (None, action.cycle)
    ]
    by_cycle: dict[int, dict[PointId, ActionRecord]] = {}
    for action in standing:
        by_cycle.setdefault(action.cycle, {})[id_from_text(action.point_id, last.id_kind)] = action
    found: list[str] = []
    for cycle, actions in by_cycle.items():
        folder = cycle_folder(config, cycle)
        if choice.label is not None:
            actions = _of_class(folder, actions, choice.label)
        if choice.query is not None:
            actions = _harming(folder, actions, choice.query)
        found += [action.point_id for action in actions.values()]
    return found


def _of_class(folder: Path, actions: Mapping[PointId, ActionRecord], label: int) -> dict[PointId, ActionRecord]:
    table = Manifest.read(folder / "manifest.parquet").table
    ids = set(table.filter(pc.equal(table["label"], label))["point_id"].to_pylist())
    return {point: action for point, action in actions.items() if point in ids}


def _harming(folder: Path, actions: Mapping[PointId, ActionRecord], query: str) -> dict[PointId, ActionRecord]:
    if not shards(folder / "scores"):
        raise BadInput(
            f"{folder / 'scores'} holds no scores, so nobody knows which queries were harmed; leave out --query"
        )
    rows = rows_of(folder / "scores", list(actions), ["top_queries"]).to_pylist()
    harming = {
        row["point_id"]
        for row in rows
        if any(top["query_id"] == query and top["influence"] < 0 for top in row["top_queries"])
    }
    return {point: action for point, action in actions.items() if point in harming}


def _vanished(config: Config, ledger: Ledger, found: list[str]) -> list[str]:
    last = ledger.last_cycle()
    if last is None:
        return []
    path = cycle_folder(config, last.cycle) / "manifest.parquet"
    if not path.is_file():  # e.g. of a ledger that was imported: nobody knows
        return []
    there = set(map(str, Manifest.read(path).ids))
    return [text for text in found if text not in there]
