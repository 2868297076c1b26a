"""Data that move: what is decided about the points of the data set as it is now, and what changed since last time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from storage.ledger import Ledger
from storage.moved import CHANGES, Moved, compare
from storage.points import Manifest, PointId

MOVED = "moved.parquet"
"""In a cycle's folder: what changed in the data since the cycle before."""


@dataclass(frozen=True)
class InForce:
    """What was decided as of a cycle about points that still have the content that it was decided on.

    Attributes:
        decided: Number of the newest action when reading began: another one later means that the rest may be stale.
    """

    removed: frozenset[PointId]
    relabeled: Mapping[PointId, int]
    decided: int


def manifest_of_cycle(workspace: Path, number: int) -> Path:
    """The train set as the workload gave it to a cycle."""
    return workspace / "cycles" / f"{number:06d}" / "manifest.parquet"


def in_force(ledger: Ledger, cycle: int, train: Manifest) -> InForce:
    """Match the decisions as of a cycle with a data set: the same id with new content is a new point."""
    if not ledger.exists:
        return InForce(frozenset(), {}, decided=0)
    decided = ledger.newest_action(cycle)
    content = dict(zip(train.ids, train.table["content"].to_pylist()))
    removed = (point for point, was in ledger.removed_contents(cycle).items() if content.get(point) == was)
    relabeled = {
        point: was.label for point, was in ledger.relabeled_contents(cycle).items() if content.get(point) == was.content
    }
    return InForce(frozenset(removed), relabeled, decided)


def record_moves(ledger: Ledger, workspace: Path, number: int, train: Manifest) -> str:
    """Compare the train set of a cycle that was opened with that of the one before, and tell the ledger.

    Args:
        ledger: Keeps the event `moved`, where anything did or nobody can tell.
        workspace: Of both cycles.
        number: The cycle.
        train: Its train set.

    Returns:
        A line; empty where nothing moved.
    """
    if number == 1:
        return ""
    before = manifest_of_cycle(workspace, number - 1)
    if not before.exists():
        ledger.record_event(number, "moved", {"unknown": f"the manifest of cycle {number - 1} is gone"}, key="unknown")
        return f"since cycle {number - 1}: not known, {before} is gone"
    relabeled = {point: was.content for point, was in ledger.relabeled_contents(number - 1).items()}
    moved = compare(Manifest.read(before), train, ledger.removed_contents(number - 1), relabeled)
    moved.write(manifest_of_cycle(workspace, number).with_name(MOVED))
    if not moved.rows.num_rows:
        return ""
    ledger.record_event(number, "moved", detail=moved.detail, key=str(moved.detail["sha256"]))
    return f"since cycle {number - 1}: {_said(moved)}"


def _said(moved: Moved) -> str:
    said = (
        f"{moved.count('new'):,} new, {moved.count('label', 'inputs'):,} changed "
        f"({moved.count('label'):,} in the label alone), {moved.count('vanished'):,} vanished"
    )
    if regrouped := moved.count("group"):
        said += f", {regrouped:,} in another group"
    counts = {
        "removed, and corrected since: in training again": moved.count("label", decided="remove"),
        "removed, and are other samples now: in training": moved.count("inputs", decided="remove"),
        "removed, and vanished: closed": moved.count("vanished", decided="remove"),
        "removed, and came back as they were: removed again": moved.count(*CHANGES, decided="remove", holds=True),
        "relabelled, and changed since: as given": moved.count("label", "inputs", decided="relabel"),
        "relabelled, and vanished: closed": moved.count("vanished", decided="relabel"),
        "relabelled, and came back as they were: relabelled": moved.count(*CHANGES, decided="relabel", holds=True),
    }
    return "; ".join([said, *(f"{count:,} were {what}" for what, count in counts.items() if count)])
