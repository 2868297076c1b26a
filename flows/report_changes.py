"""What changed since the last cycle, as a report says it: from the ledger and the proposals of earlier cycles."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from flows.comparison import regretted
from flows.stages import Cycle, cycle_folder
from storage.points import IdKind, PointId
from storage.proposals import TABLE, Proposal
from storage.records import ActionRecord


def changes_since(cycle: Cycle, proposal: Proposal, folder: Path) -> dict[str, str]:
    """Facts, by name, with what the scores in a folder say of earlier removals; none in the first cycle."""
    if cycle.number == 1:
        return {}
    earlier = [_proposed(cycle, number) for number in range(1, cycle.number)]
    before, last, now = frozenset[PointId]().union(*earlier), earlier[-1], frozenset(proposal.points)
    gone = frozenset(cycle.ledger.removed_contents(cycle.number - 1))
    gone_before = frozenset(cycle.ledger.removed_contents(cycle.number - 2))
    relabeled = cycle.ledger.relabeled_contents(cycle.number - 1)
    relabeled_before = cycle.ledger.relabeled_contents(cycle.number - 2)
    counts = {
        f"removed in cycle {cycle.number - 1}": len(gone - gone_before),
        f"relabelled in cycle {cycle.number - 1}": len(relabeled.keys() - relabeled_before.keys()),
        "brought back since": len(gone_before - gone),
        "proposed for the first time": len(now - before),
        "proposed again": len(now & before),
        "proposed then, in training and not proposed now": len(last - now - gone),
    }
    facts = {name: f"{count:,} points" for name, count in counts.items() if count}
    return facts | helpful_now(cycle.ledger.newest_actions(cycle.number - 1), cycle.manifest.id_kind, proposal, folder)


def helpful_now(actions: Iterable[ActionRecord], kind: IdKind, proposal: Proposal, folder: Path) -> dict[str, str]:
    """How many points that actions left removed the scores call helpful, and how many come back; {} where none is."""
    found = regretted(actions, kind, proposal.cycle, folder)
    if not found.points:
        return {}
    restored = proposal.rows.filter(pc.equal(proposal.rows["action"], "restore"))["point_id"].to_pylist()
    back = {point.point_id for point in found.points} & set(map(str, restored))
    cycles = ", ".join(f"{count:,} removed in cycle {cycle}" for cycle, count in found.by_cycle.items())
    said = f"{len(found.points):,} of {found.removed:,} points ({cycles}), {len(back):,} of them proposed for return"
    return {"removed earlier, would help now": f"{said}; `tamis ledger regret` names them"}


def _proposed(cycle: Cycle, number: int) -> frozenset[PointId]:
    path = cycle_folder(cycle.config, number) / TABLE
    return frozenset(pq.read_table(path, columns=["point_id"])["point_id"].to_pylist() if path.exists() else ())
