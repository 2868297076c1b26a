"""Prefect's temporary server: its settings, and the one that a killed run may have left behind.

Prefect starts the server as a child and stops it at exit; only a `kill -9` of its parent alone can leave it running.
The server inherits a mark with the name of the workspace, by which the next run finds it however early its parent died.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

MARK = "TAMIS_SERVER_OF"


def prefect_environment(workspace: Path) -> None:
    """Set what Prefect reads at import, leaving the user's own settings alone."""
    settings = {
        "PREFECT_HOME": str(workspace / "prefect"),
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_LEVEL": "CRITICAL",  # the command says what went wrong, in one line
        "PREFECT_LOGGING_SERVER_LEVEL": "CRITICAL",
        "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",
        "DO_NOT_TRACK": "true",
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    os.environ[MARK] = str(workspace)


def never_answered(error: RuntimeError) -> bool:
    """Whether it is Prefect's word for a server that was not there, or was killed, before the flow could begin."""
    return str(error).startswith(("Failed to reach API", "Timed out while attempting to connect"))


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Keep Ctrl-C back: a server that is started meanwhile inherits the mask and never sees it.

    A terminal sends Ctrl-C to every process of the command; Prefect has yet to tell its server how the flow ended.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        let_interrupts_in()


def let_interrupts_in() -> None:
    """Answer Ctrl-C again, one that came meanwhile included."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def end_left_server(workspace: Path) -> None:
    """End the server that an earlier run of this workspace could not stop; the caller holds the workspace."""
    for process in psutil.process_iter():
        try:
            ours = "prefect.server" in " ".join(process.cmdline()) and process.environ().get(MARK) == str(workspace)
            if ours:
                process.kill()
                process.wait()
        except (psutil.AccessDenied, psutil.NoSuchProcess):
            continue  # another user's, or gone meanwhile
