"""What trainings dropped while they learned: an event of each in the ledger, never a removal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc

from flows.plans import Job
from flows.stages import Cycle
from storage import drop_store
from storage.files import JSON, sha256_file
from storage.ledger import Ledger
from storage.points import PointId


@dataclass(frozen=True)
class Drop:
    """A point that a training went on without.

    Attributes:
        cycle: Of the training.
        model: Its role, seed and inputs.
        epoch: After which it was dropped.
        influence: On the queries then, by the head; nats, positive = helpful.
        influence_se: Its standard error over queries.
    """

    cycle: int
    model: str
    epoch: int
    influence: float
    influence_se: float


def record_drops(cycle: Cycle, jobs: Iterable[Job]) -> None:
    """Record, once for each trained model, how many points it dropped after which epoch, and where they are named."""
    for job in jobs:
        table = drop_store.read(job.folder)
        if table is None:  # of a training that keeps its points
            continue
        epochs: Counter[int] = Counter(table["epoch"].to_pylist())
        detail: dict[str, JSON] = {
            "model": job.folder.name,
            "dropped": table.num_rows,
            "by epoch": "; ".join(f"{epoch}: {count}" for epoch, count in sorted(epochs.items())),
            "points": sha256_file(job.folder / drop_store.DROPPED),
        }
        cycle.ledger.record_event(cycle.number, "dropped", detail=detail, key=job.folder.name)


def drops_of(workspace: Path, ledger: Ledger, point: PointId) -> tuple[Drop, ...]:
    """The trainings that dropped a point, where they still name what they dropped as the ledger knows it."""
    found = []
    for path in sorted(workspace.glob(f"cycles/*/checkpoints/*/{drop_store.DROPPED}")):
        model, cycle = path.parent.name, int(path.parents[2].name)
        table = drop_store.read(path.parent)
        rows = [] if table is None else table.filter(pc.equal(table["point_id"], point)).to_pylist()
        known = {event.key: event.detail for event in ledger.events(cycle) if event.state == "dropped"} if rows else {}
        if model in known and known[model]["points"] == sha256_file(path):
            said = ("epoch", "influence", "influence_se")
            found += [Drop(cycle, model, **{name: row[name] for name in said}) for row in rows]
    return tuple(found)


def dropped_by(job: Job) -> int:
    """How many points a training dropped."""
    table = drop_store.read(job.folder)
    return 0 if table is None else int(table.num_rows)
