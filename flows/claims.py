"""Which process serves a workspace, and where the Prefect server is that it reports to.

    <workspace>/service.json   {"pid", "url"}, locked while the service lives

All that a service starts inherits a mark, by which the next one finds and ends what a `kill -9` has left.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from flows.errors import BadInput
from flows.holding import locked

MARK = "TAMIS_SERVICE"
"""Names the process id of the service and its workspaces to what it starts: `PID:WORKSPACE:…`."""


@dataclass(frozen=True)
class Claim:
    """A workspace that this process serves."""

    workspace: Path

    def announce(self, url: str) -> None:
        """Say where its Prefect server is."""
        _note(self.workspace).write_text(json.dumps({"pid": os.getpid(), "url": url}), encoding="utf-8")


def _note(workspace: Path) -> Path:
    return workspace / "service.json"


@contextmanager
def claimed(workspace: Path) -> Iterator[Claim]:
    """Serve a workspace while the context is open.

    Raises:
        BadInput: Another process serves it, or it cannot be written.
    """
    path = _note(workspace)
    try:
        workspace.mkdir(parents=True, exist_ok=True)
        note = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise BadInput(f"workspace {workspace}: cannot be written ({error.strerror}); give another") from error
    with note:
        if not locked(note):
            raise BadInput(f"workspace {workspace}: process {_read(path).get('pid')} serves it; end it first")
        note.truncate(0)
        yield Claim(workspace)
        note.truncate(0)


def service_url(workspace: Path) -> str | None:
    """Where the Prefect server of the workspace's service is, if one lives."""
    path = _note(workspace)
    if not path.exists():
        return None
    with path.open(encoding="utf-8") as note:
        try:
            fcntl.flock(note, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _read(path).get("url")
    return None


def _read(path: Path) -> dict[str, str]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError:  # it is about to be written
        return {}


def mark_processes(workspaces: Iterable[Path]) -> None:
    """Have all that this process starts from now on bear its mark."""
    os.environ[MARK] = os.pathsep.join([str(os.getpid()), *map(str, workspaces)])


def parent_of_run() -> int | None:
    """The service that started this process, if one did."""
    pid = os.environ.get(MARK, "").split(os.pathsep)[0]
    return int(pid) if pid else None


def end_left_over(workspace: Path) -> None:
    """End what an earlier service of this workspace left when it was killed; the caller has claimed the workspace."""
    for process in psutil.process_iter():
        try:
            pid, *workspaces = process.environ().get(MARK, "").split(os.pathsep)
            if str(workspace) in workspaces and pid != str(os.getpid()):
                process.kill()
                process.wait()
        except (psutil.AccessDenied, psutil.NoSuchProcess):
            continue  # another user's, or gone meanwhile
