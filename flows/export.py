"""`tamis export`: the data set as of a cycle, for trainers and tools that know nothing of Tamis."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flows.config import load
from flows.errors import BadInput
from flows.moving import manifest_of_cycle
from flows.stores import ledger_of
from storage.exports import Export, check_start, write_export
from storage.ledger import Ledger


@dataclass(frozen=True)
class Exported:
    """What was written, and where."""

    folder: Path
    export: Export


def export_file(file: Path, as_of: int | None, out: Path | None, *, text: bool) -> Exported:
    """Write the data set as of a cycle of a tamis.toml's workspace: of the points that the workload gave it.

    Args:
        file: The tamis.toml.
        as_of: The data set that this cycle left; 0 is that before the first. None: the last cycle that has ended.
        out: A folder that does not exist; None: `export-000007` here.
        text: Write lists as text, too.

    Raises:
        BadInput: No such cycle has ended.
        storage.errors.StorageError: The data set is not the one that the ledger recorded, or cannot be written.
    """
    config = load(file)
    workspace, ledger = config.workspace, ledger_of(config)
    last = ledger.last_cycle()
    opened = last.cycle if last else 0
    ended = opened - 1 if ledger.unfinished_cycle() else opened
    cycle = ended if as_of is None else as_of
    if not opened or not 0 <= cycle <= ended:
        raise BadInput(f"--as-of {cycle}: {ended} cycles have ended in {workspace}: give 0 to {ended}")
    manifest, recorded = manifest_of_cycle(workspace, max(cycle, 1)), None
    if cycle < opened and not _moved(ledger, cycle + 1):
        recorded = (cycle + 1, ledger.cycle(cycle + 1).dataset_sha256)
    else:  # of 1 or more: no data moved before the first
        check_start(manifest, ledger.decisions(cycle - 1), (cycle, ledger.cycle(cycle).dataset_sha256))
    folder = out or Path(f"export-{cycle:06d}")
    return Exported(folder, write_export(folder, manifest, ledger.decisions(cycle), cycle, recorded, text=text))


def _moved(ledger: Ledger, cycle: int) -> bool:
    """Whether a cycle was opened on other data than the one before had, so that its record is of those."""
    return any(event.state == "moved" for event in ledger.events(cycle))
