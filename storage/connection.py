"""Short-lived connections to a DuckDB file: many processes may read it at once, or one may write.

Whoever is refused gets `IO Error: Could not set lock on file "…": Conflicting lock is held in … (PID n)`, or, in the
process that holds it, `Connection Error: … with a different configuration`. So: open late, close soon, retry with
back-off on those texts only.
"""

import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import duckdb

from storage import chain, lake
from storage.errors import LedgerLocked, StorageError, WriteFailed
from storage.interruption import interruptible
from storage.journal import ALONE, create, journal_of, journaled, recover
from storage.lake import Lake
from storage.migration import migrate, missing_steps

REFUSED = ("Could not set lock", "with a different configuration")
FIRST_WAIT, LONGEST_WAIT = 0.01, 0.5


def utc_now() -> datetime:
    """The time as the ledger keeps it: UTC, without a zone."""
    return datetime.now(UTC).replace(tzinfo=None)


@contextmanager
def reading(path: Path | Lake, patience: float) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a ledger beside other readers; one of an older schema is brought up to date first.

    Args:
        path: The DuckDB file, or the lake.
        patience: Seconds to wait for a process that writes.

    Raises:
        LedgerLocked: another process held the file for longer.
        WorkspaceTooNew: the ledger knows schema steps that this version does not.
        MigrationFailed: it cannot be brought up to date.
    """
    if isinstance(path, Lake):
        with lake.reading(path, patience) as con, interruptible(con):
            yield con
        return
    with closing(_connect(path, patience, read_only=True)) as con, interruptible(con):
        if not missing_steps(con, path):
            yield con
            return
    with holding(path, patience):
        pass
    with closing(_connect(path, patience, read_only=True)) as con, interruptible(con):
        yield con


def is_current(path: Path | Lake, patience: float) -> bool:
    """Whether a ledger has the schema of this version; it is opened, and left as it is; raises as `reading`."""
    if isinstance(path, Lake):
        return lake.is_current(path)
    with closing(_connect(path, patience, read_only=True)) as con:
        return not missing_steps(con, path)


@contextmanager
def holding(path: Path | Lake, patience: float) -> Iterator[tuple[duckdb.DuckDBPyConnection, ExitStack]]:
    """Open (or create) a ledger for this process alone, up to date, in no transaction; raises as `reading`.

    Yields:
        The connection, and what is left after it is closed.
    """
    if isinstance(path, Lake):
        with ExitStack() as held, lake.holding(path, patience) as con, interruptible(con):
            yield con, held
        return
    with _alone(path, patience):
        create(path)
        with ExitStack() as held, closing(_connect(path, patience, read_only=False)) as con, journaled(con, path, held):
            migrate(con, path, held)
            with interruptible(con):
                yield con, held


@contextmanager
def writing(path: Path | Lake, patience: float) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open (or create) a ledger and run the block as one transaction, linked into the chain; raises as `reading`.

    Raises:
        WriteFailed: the system refused a write.
    """
    try:
        with holding(path, patience) as (con, _), _transaction(con):
            before = chain.draw(con)
            yield con
            chain.extend(con, before)
    except duckdb.IOException as error:
        raise WriteFailed(f"cannot write {path}: {_first_line(error)}; nothing of this step was recorded") from error


@contextmanager
def _alone(path: Path, patience: float) -> Iterator[None]:
    """Keep other threads of this process from writing until the last handle of the file is closed."""
    if not ALONE.acquire(timeout=patience):
        raise LedgerLocked(_locked(path, patience, "another thread of this process"))
    try:
        yield
    finally:
        ALONE.release()


def _connect(path: Path, patience: float, read_only: bool) -> duckdb.DuckDBPyConnection:
    deadline, wait = time.monotonic() + patience, FIRST_WAIT
    while True:
        try:
            con = duckdb.connect(str(path), read_only=read_only)
        except (duckdb.IOException, duckdb.ConnectionException) as error:
            refused = any(text in str(error) for text in REFUSED)
            if not refused and not journal_of(path).exists():
                raise StorageError(f"cannot open the ledger {path}: {_first_line(error)}") from error
            if time.monotonic() >= deadline:
                raise LedgerLocked(_locked(path, patience, _holder(str(error)))) from error
            if not refused and recover(path):
                continue
        else:
            if not journal_of(path).exists():
                return con
            con.close()
            if recover(path):
                continue
            if time.monotonic() >= deadline:
                raise LedgerLocked(_locked(path, patience, "another connection"))
        time.sleep(wait)
        wait = min(2 * wait, LONGEST_WAIT)


def _holder(message: str) -> str:
    found = re.search(r"PID (\d+)", message)
    return f"process {found[1]}" if found else "another connection"


def _locked(path: Path, patience: float, who: str) -> str:
    return f"the ledger {path} was held by {who} for more than {patience:g} s; wait for it to end or stop it"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


@contextmanager
def _transaction(con: duckdb.DuckDBPyConnection) -> Iterator[None]:
    con.begin()
    try:
        with interruptible(con):  # a query goes on until then, and the roll-back would wait for it
            yield
    except BaseException:
        con.rollback()
        raise
    con.commit()
