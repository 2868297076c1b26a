"""What killed processes leave in a workspace that nobody works in: half-written files, MLflow runs without an end."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path

import psutil

from flows.config import Config
from flows.stores import identity_of, ledger_of, store_uri
from storage.connection import is_current
from storage.files import TEMPORARY
from storage.journal import journal_of
from storage.lake import Lake
from storage.ledger import Ledger
from storage.tracking_health import Unended, unended_runs

FOREIGN = ("mlartifacts", "prefect")
"""Folders of a workspace whose files are others' to name."""
LOOSE = (f".*{TEMPORARY}", ".ledger.duckdb.new-*", ".ledger.duckdb.import*")
"""Names, beside the ledger, of drafts; commands that do not hold the workspace make them, too."""
PID = re.compile(rf"\.(?:new-)?(\d+)(?:{re.escape(TEMPORARY)})?$")
DRAFT_SECONDS = 60.0
"""So long a draft that names no process may be in use."""


def torn_files(workspace: Path) -> list[Path]:
    """Files and folders under temporary names, and checkpoints without a manifest; none inside another."""
    rooms = [path for path in workspace.glob("*") if path.is_dir() and path.name not in FOREIGN]
    named = [path for room in rooms for path in room.rglob(f".*{TEMPORARY}")]
    for pattern in LOOSE:
        named += [path for path in workspace.glob(pattern) if not _in_use(path)]
    steps = (workspace / "cycles").glob("*/checkpoints/**/step-*")
    named += [path for path in steps if path.is_dir() and not (path / "MANIFEST.json").is_file()]
    return sorted(path for path in set(named) if not any(parent in named for parent in path.parents))


def _in_use(draft: Path) -> bool:
    """Whether the process that a draft is named after lives; without a name, whether it was just written to."""
    try:
        written = draft.stat().st_mtime
        if (found := PID.search(draft.name)) is None:
            return time.time() - written < DRAFT_SECONDS
        return bool(psutil.Process(int(found[1])).create_time() <= written)  # else the number went to another one
    except FileNotFoundError:  # it has become what it was a draft of
        return True
    except psutil.NoSuchProcess:
        return False


def is_readable(ledger: Ledger) -> bool:
    """Whether it can be read without putting it back or bringing it up to date."""
    whole = isinstance(ledger.path, Lake) or not journal_of(ledger.path).exists()
    return whole and is_current(ledger.path, ledger.patience)


def remove(path: Path) -> None:
    """Delete a file or a folder."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def unended(config: Config) -> tuple[Unended, ...]:
    """MLflow runs that say they are running, though the cycle has ended or nobody is at work on them."""
    store, ledger = store_uri(config), ledger_of(config)
    if store is None or (ledger.exists and not is_readable(ledger)):
        return ()
    identity = identity_of(config)
    if config.servers.mlflow and not identity:
        return ()
    current = ledger.unfinished_cycle() if ledger.exists else None
    return unended_runs(store, config.name, [str(current.cycle)] if current else [], identity)
