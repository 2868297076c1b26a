"""How the file of a ledger is changed: only while a copy of it, as it was before, lies beside it.

A commit appends to DuckDB's write-ahead log, and a checkpoint moves the log into the file. Until its end DuckDB writes
over blocks that are still needed: kill -9 in the middle of it left a file that could not be opened, once in 112 kills.
Nor can DuckDB read back a log in which a column gets a sequence as its default. So the file is copied to
`ledger.duckdb.journal` before it is written to; a journal that is found by whoever gets the lock of the file is of a
process that did not end what it did, and is put back. Nothing is acknowledged before the journal is gone.
"""

import fcntl
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import duckdb

from storage.errors import WriteFailed
from storage.files import atomic_path, sync_file, sync_folder

ALONE = threading.RLock()
"""Of the thread that writes: a file's lock is the process's, which loses it with the first handle that it closes."""


def log_of(path: Path) -> Path:
    """DuckDB's write-ahead log of a file."""
    return path.with_name(f"{path.name}.wal")


def journal_of(path: Path) -> Path:
    """The copy that a file is written to under."""
    return path.with_name(f"{path.name}.journal")


def create(path: Path) -> None:
    """Make an empty file, if there is none: whole or not at all, and never in place of one that another has made."""
    if path.exists():
        return
    draft = path.with_name(f".{path.name}.new-{os.getpid()}")
    try:
        duckdb.connect(str(draft)).close()
        sync_file(draft)
        with suppress(FileExistsError):
            os.link(draft, path)
        sync_folder(path.parent)
    except OSError as error:
        raise WriteFailed(
            f"cannot make {path}: {error.strerror or error}; free space or give another folder"
        ) from error
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def journaled(con: duckdb.DuckDBPyConnection, path: Path, held: ExitStack) -> Iterator[None]:
    """Run a block that may write, all of which is undone if the process is killed before the end; under `ALONE`.

    Args:
        con: The ledger, open for writing and in no transaction.
        path: Its file.
        held: Left after `con` is closed: a process that closes any handle of a file gives up its lock on it.
    """
    con.execute("CHECKPOINT")  # what another hand may have left in the log
    source = held.enter_context(path.open("rb"))
    with atomic_path(journal_of(path)) as temporary, temporary.open("wb") as copy:
        shutil.copyfileobj(source, copy)
    try:
        yield
    finally:
        con.execute("CHECKPOINT")
        _end(path)


def recover(path: Path) -> bool:
    """Put back what a process that was killed had begun to write over.

    Returns:
        False if another process holds the file: try again.

    Raises:
        WriteFailed: the system refused a write; the journal stays for the next one who opens the ledger.
    """
    try:
        return _put_back(path)
    except OSError as error:
        why = error.strerror or str(error)
        raise WriteFailed(
            f"cannot put {path} back from {journal_of(path)}, as a killed process left it: {why}; free space or fix "
            "permissions, then run again"
        ) from error


def is_abandoned(path: Path) -> bool:
    """Whether a journal is of a process that is gone: nobody holds the file that it is a copy of."""
    with ALONE, path.open("rb") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return False
        return journal_of(path).exists()


def _put_back(path: Path) -> bool:
    with ALONE, path.open("r+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        journal = journal_of(path)
        if not journal.exists():
            return True
        log_of(path).unlink(missing_ok=True)
        with journal.open("rb") as copy:
            shutil.copyfileobj(copy, file)
        file.truncate()
        file.flush()
        os.fsync(file.fileno())
        _end(path)
    return True


def _end(path: Path) -> None:
    """Take the journal away for good: one that came back after a power cut would undo what was acknowledged."""
    journal_of(path).unlink()
    sync_folder(path.parent)
