"""Who holds the workspace and the ledger, and what a killed command has left running."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil

from flows.config import Config
from flows.errors import BadInput
from flows.holding import holder
from flows.server import MARK
from flows.stores import ledger_of
from storage.connection import is_current
from storage.journal import is_abandoned, journal_of

LEDGER_SECONDS = 5.0
OURS = ("flows.ranks.", "warden.py")


def workspace(config: Config) -> str:
    """A process that works in it does work."""
    who = holder(config.workspace)
    if who is None:
        return "no process works in it"
    pid = who.split()[0]
    if pid.isdigit() and psutil.pid_exists(int(pid)) and psutil.Process(int(pid)).status() == psutil.STATUS_STOPPED:
        raise BadInput(f"process {who} works in it, and is stopped: `kill -CONT {pid}` to go on, or `kill -9 {pid}`")
    return f"process {who} works in it"


def ledger_lock(config: Config) -> str:
    """The ledger can be read."""
    if config.servers.ledger is not None:
        there = ledger_of(config).exists
        return f"on a lake, {ledger_of(config).path}, whose catalog answers" + ("" if there else "; no cycle yet")
    path = config.workspace / "ledger.duckdb"
    if not path.exists():
        return "no ledger yet: the first cycle makes one"
    if journal_of(path).exists():
        if is_abandoned(path):
            raise BadInput(
                f"a process was killed while it wrote, {journal_of(path)} is the ledger as it was: any command that "
                "opens the ledger puts it back, e.g. `tamis ledger verify`"
            )
        return "a process is writing to it"
    if not is_current(path, LEDGER_SECONDS):
        return "of an older version: the next command that opens it brings it up to date, after a copy"
    return "it can be read"


def processes(config: Config) -> str:
    """No rank, agent or server of the workspace runs without a command that they belong to."""
    if (who := holder(config.workspace)) is not None:
        return f"not looked for, while process {who} works in the workspace: its own are among them"
    if left := list(_of(config.workspace)):
        pids = " ".join(str(process.pid) for process in left)
        named = ", ".join(sorted({_name(process) for process in left}))
        raise BadInput(f"{len(left)} left by a command that was killed ({named}): `kill {pids}`")
    return "no rank, agent or server is left of an earlier run"


def _of(workspace: Path) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
            within = any(word.startswith(f"{workspace}/") for word in command)
            rank = within and any(part in word for word in command for part in OURS)
            if rank or ("prefect.server" in " ".join(command) and process.environ().get(MARK) == str(workspace)):
                yield process
        except (psutil.AccessDenied, psutil.NoSuchProcess):
            continue  # another user's, or gone meanwhile


def _name(process: psutil.Process) -> str:
    try:
        words = process.cmdline()
    except psutil.NoSuchProcess:
        return "ended meanwhile"
    return next((word for word in words if "flows.ranks." in word or "warden.py" in word), "Prefect's server")
