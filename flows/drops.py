"""What trainings dropped while they learned: an event of each in the ledger, never a removal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from flows.plans import Job
from flows.stages import Cycle
from storage import drop_store
from storage.files import JSON, sha256_file


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


def dropped_by(job: Job) -> int:
    """How many points a training dropped."""
    table = drop_store.read(job.folder)
    return 0 if table is None else int(table.num_rows)
