"""A ledger on DuckLake: its tables in a catalog in PostgreSQL and Parquet files, for teams of more than one machine.

A lake knows no key, check or sequence, and lets two writers add the same number. So who writes holds a lock of
PostgreSQL's, and works on a copy of the ledger in memory, under the schema that a file has; only what passes it there
is added to the lake, in one commit. That commit also moves the row of `writer`, from where it was when the copy was
made: should the lock have been lost, the second of two is refused. Who reads asks the lake itself, as of one snapshot.

    <name>.events, …      the tables of storage/schema
          .schema_version steps that these are of
          .writer         the last number drawn: one row

Every commit is a snapshot with its author and what was done: `FROM lake.events AT (VERSION => 7)`.
"""

import hashlib
import itertools
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import duckdb

from storage import lake_errors as errors
from storage.errors import LedgerLocked, LedgerMissing
from storage.files import atomic_path
from storage.lake_extensions import instance, open_data
from storage.migration import newest_schema, run_steps, tables

logger = logging.getLogger(__name__)
_number = itertools.count()
WAIT_SECONDS = 0.1


@dataclass(frozen=True)
class Lake:
    """Where a ledger on DuckLake is.

    Attributes:
        catalog: `postgresql://USER@HOST:PORT/DATABASE`; libpq takes the password from the environment.
        data: A folder, or `s3://BUCKET/PREFIX` with the keys in the environment.
        name: Of the catalog's schema: one ledger each.
    """

    catalog: str
    data: str
    name: str

    def __str__(self) -> str:
        return f"{self.name} in {self.catalog}"

    @property
    def lock(self) -> int:
        """The number of its lock in PostgreSQL."""
        return int.from_bytes(hashlib.sha256(f"tamis/{self.name}".encode()).digest()[:8], "big", signed=True)


def exists(lake: Lake) -> bool:
    """Whether there is a ledger."""
    try:
        with _attached(lake, read_only=True) as (con, name):
            return _schema_of(con, lake, name) > 0
    except LedgerMissing:
        return False


def is_current(lake: Lake) -> bool:
    """Whether a ledger has the schema of this version; it is opened, and left as it is; raises as `reading`."""
    with _attached(lake, read_only=True) as (con, name):
        schema = _schema_of(con, lake, name)
        return schema == newest_schema(lake, schema)


@contextmanager
def reading(lake: Lake, patience: float) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a ledger as of now; one of an older schema is brought up to date first.

    Args:
        lake: Where it is.
        patience: Seconds to wait for a process that brings it up to date.

    Raises:
        LedgerMissing: there is none.
        ServerUnusable: the catalog or the object store does not answer, or refuses.
    """
    with _attached(lake, read_only=True) as (con, name):
        schema = _schema_of(con, lake, name)
        if not schema:
            raise LedgerMissing(errors.missing(lake))
        if schema == newest_schema(lake, schema):
            with _viewed(con, lake, name, schema):
                yield con
            return
    with holding(lake, patience):
        pass
    with reading(lake, patience) as con:
        yield con


@contextmanager
def _viewed(con: duckdb.DuckDBPyConnection, lake: Lake, name: str, schema: int) -> Iterator[None]:
    """A ledger whose tables are views of the lake's, as of one snapshot."""
    with _staged(con, ":memory:"), errors.named(lake):
        run_steps(con, lake, 0, schema)
        for table in reversed(tables(schema)):
            con.execute(f"DROP TABLE {table}")
            con.execute(f"CREATE VIEW {table} AS FROM {name}.{table}")
        con.begin()
        _check_same(con, lake, name, schema)
        yield


@contextmanager
def holding(lake: Lake, patience: float) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open (or create) a ledger for this process alone; what the block adds is added at its end, or nothing of it.

    Raises:
        LedgerLocked: another process held it for longer than `patience`, or wrote in spite of the lock.
        ServerUnusable: as `reading`.
    """
    with _locked(lake, patience), _attached(lake, read_only=False) as (con, name), _staged(con, ":memory:"):
        schema, drawn = _load(con, lake, name)
        newest = newest_schema(lake, schema)
        run_steps(con, lake, schema, newest)
        if 0 < schema < newest:
            logger.warning("the ledger %s gets schema %d; as it was it stays readable as a snapshot", lake, newest)
            with _committed(con, lake, name, drawn, "tamis", f"schema {newest}"):
                _write_anew(con, name, newest, "CREATE OR REPLACE")
            drawn = _drawn(con)
        loaded = {table: _count(con, table) for table in tables(newest)}
        yield con
        added = {table: count for table, count in loaded.items() if _count(con, table) > count}
        if added:
            with _committed(con, lake, name, drawn, *_told(con, loaded["events"])):
                if schema:
                    _add(con, name, added)
                else:
                    _write_anew(con, name, newest, "CREATE")


def copy(lake: Lake, target: Path) -> None:
    """Write the ledger as of now to a DuckDB file, whole or not at all."""
    with atomic_path(target) as draft, _attached(lake, read_only=True) as (con, name), _staged(con, str(draft)):
        _load(con, lake, name)
        with errors.named(lake):
            con.execute("CHECKPOINT")  # here, since what fails when it is detached is not said


def _write_anew(con: duckdb.DuckDBPyConnection, name: str, schema: int, create: str) -> None:
    """Write all that is in the stage."""
    for table in (*tables(schema), "schema_version"):
        con.execute(f"{create} TABLE {name}.{table} AS FROM {table}")
    con.execute(f"CREATE TABLE IF NOT EXISTS {name}.writer AS SELECT {_drawn(con)} AS drawn")


def _add(con: duckdb.DuckDBPyConnection, name: str, loaded: Mapping[str, int]) -> None:
    """Write the rows that the stage's tables have beyond those loaded."""
    for table, count in loaded.items():
        con.execute(f"INSERT INTO {name}.{table} BY NAME FROM {table} WHERE rowid >= {count} ORDER BY rowid")


def _told(con: duckdb.DuckDBPyConnection, before: int) -> tuple[str, str]:
    """Who did what since there were so many events; without a new one it was a restoration."""
    events = "SELECT actor, 'cycle ' || cycle || ': ' || state FROM events WHERE rowid >= ? ORDER BY seq DESC LIMIT 1"
    actions = "SELECT actor, 'cycle ' || cycle || ': ' || action FROM actions ORDER BY seq DESC LIMIT 1"
    found = con.execute(events, [before]).fetchall() or con.execute(actions).fetchall()
    return found[0] if found else ("tamis", "")


def _load(con: duckdb.DuckDBPyConnection, lake: Lake, name: str) -> tuple[int, int]:
    """Copy the lake's rows into the stage, under the schema they have; returns its number and the last one drawn."""
    schema = _schema_of(con, lake, name)
    if not schema:
        return 0, 0
    newest_schema(lake, schema)
    run_steps(con, lake, 0, schema)
    with errors.named(lake):
        con.begin()
        _check_same(con, lake, name, schema)
        for table in tables(schema):
            load_rows(con, table, f"{name}.{table}")
        [(drawn,)] = con.execute(f"FROM {name}.writer").fetchall()
        con.commit()
    con.execute("SELECT max(nextval('ledger_seq')) FROM range(?)", [drawn - _drawn(con)]).fetchall()
    return schema, drawn


def load_rows(con: duckdb.DuckDBPyConnection, table: str, source: str) -> None:
    """Insert the rows of a source into an empty table of a ledger."""
    if table == "cycles":  # one by one: a cycle refers to the one before it
        [(last,)] = con.execute(f"SELECT coalesce(max(CAST(cycle AS INTEGER)), 0) FROM {source}").fetchall()
        for cycle in range(1, last + 1):
            con.execute(f"INSERT INTO cycles BY NAME FROM {source} WHERE CAST(cycle AS INTEGER) = {cycle}")
    else:
        con.execute(f"INSERT INTO {table} BY NAME FROM {source}")


def _drawn(con: duckdb.DuckDBPyConnection) -> int:
    [(drawn,)] = con.execute("SELECT currval('ledger_seq')").fetchall()
    return int(drawn)


def _count(con: duckdb.DuckDBPyConnection, table: str) -> int:
    [(count,)] = con.execute(f"SELECT count(*) FROM {table}").fetchall()
    return int(count)


def _schema_of(con: duckdb.DuckDBPyConnection, lake: Lake, name: str) -> int:
    with errors.named(lake):
        try:  # to ask for the tables would ask every table of PostgreSQL's
            [(version,)] = con.execute(f"SELECT max(version) FROM {name}.schema_version").fetchall()
        except duckdb.CatalogException:
            return 0
    return int(version)


def _check_same(con: duckdb.DuckDBPyConnection, lake: Lake, name: str, schema: int) -> None:
    """Begin the snapshot that a transaction reads, and see that the schema is what it was before."""
    if _schema_of(con, lake, name) != schema:
        raise LedgerLocked(errors.overtaken(lake))


@contextmanager
def _attached(lake: Lake, read_only: bool) -> Iterator[tuple[duckdb.DuckDBPyConnection, str]]:
    """A connection on which the lake has a name."""
    name = f"lake_{next(_number)}"
    con = instance(os.getpid()).cursor()
    try:
        with errors.named(lake):
            open_data(con, lake.data)
            options = f"DATA_PATH '{errors.quoted(lake.data)}', METADATA_SCHEMA '{lake.name}'"
            options += ", READ_ONLY" if read_only else ""
            con.execute(f"ATTACH 'ducklake:postgres:{errors.quoted(_reached(lake))}' AS {name} ({options})")
        yield con, name
    finally:
        _detach(con, name)
        con.close()


@contextmanager
def _staged(con: duckdb.DuckDBPyConnection, file: str) -> Iterator[None]:
    """A database of the connection's own, in which names without one are looked up."""
    name = f"stage_{next(_number)}"
    con.execute(f"ATTACH '{errors.quoted(file)}' AS {name}")
    con.execute(f"USE {name}")
    try:
        yield
    finally:
        _detach(con, name)


def _detach(con: duckdb.DuckDBPyConnection, name: str) -> None:
    with suppress(duckdb.Error):  # of a block that failed in a transaction, if its server still hears it
        con.rollback()
    with suppress(duckdb.Error):  # what cannot be detached goes with the connection
        con.execute("USE memory")
        con.execute(f"DETACH DATABASE IF EXISTS {name}")


@contextmanager
def _locked(lake: Lake, patience: float) -> Iterator[None]:
    """Hold the lock of the lake's writers; PostgreSQL gives it back when this process ends, however it does."""
    name, deadline = f"lock_{next(_number)}", time.monotonic() + patience
    con = instance(os.getpid()).cursor()
    take = f"FROM postgres_query('{name}', 'SELECT pg_try_advisory_xact_lock({lake.lock})')"
    try:
        with errors.named(lake):
            con.execute(f"ATTACH '{errors.quoted(_reached(lake))}' AS {name} (TYPE postgres, READ_ONLY)")
            con.begin()
            while not con.execute(take).fetchall()[0][0]:
                if time.monotonic() >= deadline:
                    raise LedgerLocked(
                        f"the ledger {lake} was written to by another process for more than {patience:g} s; wait for "
                        "it to end or stop it"
                    )
                time.sleep(WAIT_SECONDS)
        yield
    finally:
        _detach(con, name)
        con.close()


def _reached(lake: Lake) -> str:
    """The catalog for libpq, which else waits for minutes."""
    return f"{lake.catalog}{'&' if '?' in lake.catalog else '?'}connect_timeout=10"


@contextmanager
def _committed(
    con: duckdb.DuckDBPyConnection, lake: Lake, name: str, drawn: int, who: str, what: str
) -> Iterator[None]:
    """One commit to the lake, if nobody drew a number since it was loaded: the lock may have been lost.

    Two that look at once conflict, as both move the one row.
    """
    try:
        with errors.named(lake):
            con.begin()
            if drawn:
                moved = con.execute(f"UPDATE {name}.writer SET drawn = ? WHERE drawn = ?", [_drawn(con), drawn])
                if moved.fetchall() != [(1,)]:
                    raise LedgerLocked(errors.overtaken(lake))
            yield
            con.execute(f"CALL {name}.set_commit_message(?, ?)", [who, what])
            with errors.committing(lake):
                con.commit()
    except BaseException:
        with suppress(duckdb.Error):  # a commit that failed has ended it
            con.rollback()
        raise
