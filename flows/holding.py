"""Who works in a workspace: one process at a time, which holds `<workspace>/.lock` and stands in it."""

from __future__ import annotations

import fcntl
import time
from pathlib import Path
from typing import IO

TRIES = 5


def lock_of(workspace: Path) -> Path:
    """The file that the process locks."""
    return workspace / ".lock"


def locked(lock: IO[str]) -> bool:
    """Lock a file; several tries, since whoever looks whether it is held holds it for a moment."""
    for _ in range(TRIES):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.1)
        else:
            return True
    return False


def is_held(workspace: Path) -> bool:
    """Whether a process works in a workspace, be it on another node."""
    path = lock_of(workspace)
    if not path.exists():
        return False
    with path.open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def holder(workspace: Path) -> str | None:
    """The process that works in a workspace, as `PID (COMMAND)`; None if none does."""
    return lock_of(workspace).read_text(encoding="utf-8").strip() or "unknown" if is_held(workspace) else None
