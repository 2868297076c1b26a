"""Short-lived connections to a DuckDB file that one process at a time may hold.

A second process gets `IO Error: Could not set lock on file "…": Conflicting lock is held in … (PID n)`. So: open late,
close soon, retry with back-off on that text only. The schema is a folder of numbered SQL files; what a ledger lacks is
run when it is opened, in one transaction with its number in `schema_version`.
"""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

import duckdb

from storage.errors import LedgerLocked, StorageError, WorkspaceTooNew, WriteFailed

LOCKED = "Could not set lock"
FIRST_WAIT, LONGEST_WAIT = 0.01, 0.5


def schema_files() -> list[tuple[int, str]]:
    """Number and SQL of every schema step, in order."""
    steps = (entry for entry in files("storage").joinpath("schema").iterdir() if entry.name.endswith(".sql"))
    return sorted((int(entry.name[:4]), entry.read_text()) for entry in steps)


def utc_now() -> datetime:
    """The time as the ledger keeps it: UTC, without a zone."""
    return datetime.now(UTC).replace(tzinfo=None)


@contextmanager
def open_ledger(path: Path, patience: float) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open (or create) a ledger, bring its schema up to date, and run the block as one transaction.

    Args:
        path: The DuckDB file.
        patience: Seconds to wait for another process.

    Raises:
        LedgerLocked: another process held the file for longer.
        WorkspaceTooNew: the ledger knows schema steps that this version does not.
        WriteFailed: the system refused a write.
    """
    con = _connect(path, patience)
    try:
        _migrate(con, path)
        with _transaction(con):
            yield con
    except duckdb.IOException as error:
        raise WriteFailed(f"cannot write {path}: {_first_line(error)}; nothing of this step was recorded") from error
    finally:
        con.close()


def _connect(path: Path, patience: float) -> duckdb.DuckDBPyConnection:
    deadline, wait = time.monotonic() + patience, FIRST_WAIT
    while True:
        try:
            return duckdb.connect(str(path))
        except duckdb.IOException as error:
            if LOCKED not in str(error):
                raise StorageError(f"cannot open the ledger {path}: {_first_line(error)}") from error
            if time.monotonic() >= deadline:
                raise LedgerLocked(_locked(path, patience, str(error))) from error
        time.sleep(wait)
        wait = min(2 * wait, LONGEST_WAIT)


def _locked(path: Path, patience: float, message: str) -> str:
    holder = re.search(r"PID (\d+)", message)
    who = f"process {holder[1]}" if holder else "another process"
    return f"the ledger {path} was held by {who} for more than {patience:g} s; wait for it to end or stop it"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


@contextmanager
def _transaction(con: duckdb.DuckDBPyConnection) -> Iterator[None]:
    con.begin()
    try:
        yield
    except BaseException:
        con.rollback()
        raise
    con.commit()


def _migrate(con: duckdb.DuckDBPyConnection, path: Path) -> None:
    con.execute(
        "CREATE TABLE IF NOT EXISTS schema_version (version INTEGER PRIMARY KEY, applied_at TIMESTAMP NOT NULL)"
    )
    [(version,)] = con.sql("SELECT coalesce(max(version), 0) FROM schema_version").fetchall()
    steps = schema_files()
    if version > steps[-1][0]:
        raise WorkspaceTooNew(
            f"the ledger {path} has schema {version}, this version of Tamis knows up to {steps[-1][0]}; upgrade Tamis"
        )
    for number, sql in steps:
        if number > version:
            with _transaction(con):
                con.execute(sql)
                con.execute("INSERT INTO schema_version VALUES (?, ?)", [number, utc_now()])
