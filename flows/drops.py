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


@dataclass(frozen=True)
class Dropped:
    """What is known of a point in trainings that dropped some.

    Attributes:
        drops: Of the point.
        unknown: Cycle and model of trainings whose drops the ledger counts, and whose list of them is gone or altered:
            the point may be among them.
    """

    drops: tuple[Drop, ...]
    unknown: tuple[tuple[int, str], ...]


def dropped_from(workspace: Path, ledger: Ledger, point: PointId) -> Dropped:
    """The trainings that dropped a point, as far as they still name what they dropped as the ledger knows it."""
    found, unknown = list[Drop](), list[tuple[int, str]]()
    for event in ledger.since(0):
        if event.state != "dropped" or not event.detail.get("dropped", 1):
            continue
        path = workspace / "cycles" / f"{event.cycle:06d}" / "checkpoints" / event.key / drop_store.DROPPED
        if not path.is_file() or sha256_file(path) != event.detail["points"]:
            unknown.append((event.cycle, event.key))
            continue
        table = drop_store.read(path.parent)
        for row in [] if table is None else table.filter(pc.equal(table["point_id"], point)).to_pylist():
            said = {name: row[name] for name in ("epoch", "influence", "influence_se")}
            found.append(Drop(event.cycle, event.key, **said))
    return Dropped(tuple(found), tuple(unknown))


def dropped_by(job: Job) -> int:
    """How many points a training dropped."""
    table = drop_store.read(job.folder)
    return 0 if table is None else int(table.num_rows)
