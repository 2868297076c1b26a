"""Prefect's temporary server: its settings, and the one that a killed run may have left behind.

Prefect starts the server as a child and stops it at exit; only a `kill -9` of its parent alone can leave it running.
Its process id is noted in the workspace, and the next run ends it.
"""

from __future__ import annotations

import os
from pathlib import Path

import psutil

from storage.files import atomic_write_json, read_json


def prefect_environment(workspace: Path) -> None:
    """Set what Prefect reads at import, leaving the user's own settings alone."""
    settings = {
        "PREFECT_HOME": str(workspace / "prefect"),
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_LEVEL": "ERROR",
        "PREFECT_LOGGING_SERVER_LEVEL": "CRITICAL",
        "DO_NOT_TRACK": "true",
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def note_server(workspace: Path) -> None:
    """Write down the temporary server that this process has started, if it has."""
    for child in psutil.Process().children():
        if "prefect.server" in " ".join(child.cmdline()):
            atomic_write_json(_note(workspace), {"pid": child.pid, "started": child.create_time()})


def end_left_server(workspace: Path) -> None:
    """End the server that an earlier run noted and could not stop."""
    note = _note(workspace)
    if not note.exists():
        return
    left = read_json(note)
    if psutil.pid_exists(left["pid"]):
        process = psutil.Process(left["pid"])
        if process.create_time() == left["started"]:
            process.kill()
    note.unlink()


def _note(workspace: Path) -> Path:
    return workspace / "prefect" / "server.json"
