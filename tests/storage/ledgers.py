"""A small ledger of every kind of row, and proposals for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pyarrow as pa

from storage.lake import Lake, _attached
from storage.ledger import Ledger
from storage.points import Manifest
from storage.proposals import Proposal
from storage.records import Action

N = 10
MANIFEST = Manifest.build(range(N), [f"c{i}" for i in range(N)], [f"i{i}" for i in range(N)])


def proposal(
    cycle: int, points: list[int], q: float = 0.2, action: Action = "remove", new_label: int | None = None
) -> Proposal:
    rows = pa.table(
        {
            "point_id": pa.array(points, pa.int64()),
            "action": pa.array([action] * len(points), pa.string()),
            "new_label": pa.array([new_label] * len(points), pa.int32()),
            "reason": pa.array(["harmful"] * len(points), pa.string()),
            "score": pa.array([-float(p) for p in points], pa.float64()),
            "threshold": pa.array([0.0] * len(points), pa.float64()),
        }
    )
    return Proposal(cycle, rows, "data", "scores", {"q": q})


def opened(ledger: Ledger, cycle: int) -> None:
    ledger.open_cycle(cycle, f"data{cycle}", {"q": 0.2}, {"tamis": "0.1"}, "int")


def removed(ledger: Ledger, cycle: int, points: list[int]) -> Proposal:
    """Open a cycle and remove points in it, with an approval."""
    opened(ledger, cycle)
    return applied(ledger, proposal(cycle, points))


def applied(ledger: Ledger, made: Proposal) -> Proposal:
    """Propose, approve and apply."""
    ledger.add_proposal(made)
    ledger.add_review(made.hash[:12], "approve", "ada", "cli")
    ledger.apply_proposal(made.cycle, made.hash, MANIFEST, "ekfac", "digest")
    return made


def full_ledger(path: Path | Lake) -> Ledger:
    """Two cycles with every kind of row: 1 and 2 removed and 2 restored, 3 relabelled; 4 rejected."""
    ledger = Ledger(path, patience=60)
    removed(ledger, 1, [1, 2])
    ledger.record_event(1, "promoted")
    opened(ledger, 2)
    applied(ledger, proposal(2, [3], action="relabel", new_label=7))
    ledger.restore([2], "bob", "was right")
    ledger.record_event(2, "promoted")
    opened(ledger, 3)
    rejected = proposal(3, [4])
    ledger.add_proposal(rejected)
    ledger.add_review(rejected.hash, "reject", "ada", "cli", "looks fine")
    return ledger


@contextmanager
def another_hand(place: Path | Lake) -> Iterator[duckdb.DuckDBPyConnection]:
    """The tables of a ledger, open to whoever may write them."""
    if isinstance(place, Path):
        with duckdb.connect(str(place)) as con:
            yield con
        return
    with _attached(place, read_only=False) as (con, name):
        con.execute(f"USE {name}")
        yield con
