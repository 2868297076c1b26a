"""What changed since the last cycle, as a report says it: from the ledger and the proposals of earlier cycles."""

from __future__ import annotations

import pyarrow.parquet as pq

from flows.stages import Cycle, cycle_folder
from storage.points import PointId
from storage.proposals import TABLE, Proposal


def changes_since(cycle: Cycle, proposal: Proposal) -> dict[str, str]:
    """Facts, by name; none in the first cycle."""
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
    return {name: f"{count:,} points" for name, count in counts.items() if count}


def _proposed(cycle: Cycle, number: int) -> frozenset[PointId]:
    path = cycle_folder(cycle.config, number) / TABLE
    return frozenset(pq.read_table(path, columns=["point_id"])["point_id"].to_pylist() if path.exists() else ())
