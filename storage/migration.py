"""The schema of the ledger: a folder of numbered SQL files, and how a ledger of an older version gets those it lacks.

Before a step is run on a ledger that has rows, the file is copied beside it, as `ledger.duckdb.before-0002`. A step and
its number in `schema_version` are one transaction, so a step that fails leaves the ledger as it was.
"""

import functools
import logging
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

import duckdb

from storage import chain
from storage.errors import MigrationFailed, WorkspaceTooNew
from storage.files import atomic_path

logger = logging.getLogger(__name__)


def _link_all(con: duckdb.DuckDBPyConnection) -> None:
    chain.draw(con)
    chain.extend(con, after=0)


AFTER: Mapping[int, Callable[[duckdb.DuckDBPyConnection], None]] = {2: _link_all}
"""What a step does beyond its SQL, in the same transaction."""


def schema_files() -> list[tuple[int, str]]:
    """Number and SQL of every schema step, in order."""
    steps = (entry for entry in files("storage").joinpath("schema").iterdir() if entry.name.endswith(".sql"))
    return sorted((int(entry.name[:4]), entry.read_text()) for entry in steps)


def newest_schema(place: object, version: int) -> int:
    """The number of the last schema step.

    Args:
        place: Of a ledger.
        version: The last step that it has.

    Raises:
        WorkspaceTooNew: it knows steps that this version does not.
    """
    newest = schema_files()[-1][0]
    if version > newest:
        raise WorkspaceTooNew(
            f"the ledger {place} has schema {version}, this version of Tamis knows up to {newest}; upgrade Tamis"
        )
    return newest


def missing_steps(con: duckdb.DuckDBPyConnection, path: Path) -> list[tuple[int, str]]:
    """The schema steps that a ledger lacks; raises as `newest_schema`."""
    query = "SELECT count(*) FROM duckdb_tables() WHERE table_name = 'schema_version'"
    [(known,)] = con.sql(query).fetchall()
    version = con.sql("SELECT coalesce(max(version), 0) FROM schema_version").fetchall()[0][0] if known else 0
    newest_schema(path, version)
    return [(number, sql) for number, sql in schema_files() if number > version]


def run_steps(con: duckdb.DuckDBPyConnection, place: object, after: int, last: int) -> None:
    """Run the steps above `after` and up to `last` on the database in use, which has those before them."""
    for number, sql in schema_files():
        if after < number <= last:
            _step(con, place, number, sql)


@functools.cache
def tables(schema: int) -> tuple[str, ...]:
    """The tables that hold what happened, under the steps up to `schema`, each after those that it refers to."""
    query = "SELECT table_name FROM duckdb_tables() WHERE NOT list_contains(?, table_name) ORDER BY table_oid"
    with closing(duckdb.connect()) as con:
        run_steps(con, "in memory", 0, schema)
        return tuple(name for (name,) in con.execute(query, [["schema_version", "states"]]).fetchall())


def migrate(con: duckdb.DuckDBPyConnection, path: Path, held: ExitStack) -> None:
    """Run the steps that a ledger lacks.

    Args:
        con: The ledger, open for writing and in no transaction.
        path: Its file.
        held: Left after `con` is closed.

    Raises:
        MigrationFailed: a step failed; the ledger is as it was before it.
    """
    steps = missing_steps(con, path)
    if not steps:
        return
    first = steps[0][0]
    if first > 1 and con.sql("SELECT count(*) FROM cycles").fetchall()[0][0]:
        copy = path.with_name(f"{path.name}.before-{first:04d}")
        copy_file(con, path, copy, held)
        logger.warning("the ledger %s gets schema %d; as it was it stays in %s", path, steps[-1][0], copy)
    run_steps(con, path, first - 1, steps[-1][0])


def _step(con: duckdb.DuckDBPyConnection, place: object, number: int, sql: str) -> None:
    try:
        con.begin()
        con.execute(
            "CREATE TABLE IF NOT EXISTS schema_version (version INTEGER PRIMARY KEY, applied_at TIMESTAMP NOT NULL)"
        )
        con.execute(sql)
        if number in AFTER:
            AFTER[number](con)
        con.execute("INSERT INTO schema_version VALUES (?, ?)", [number, datetime.now(UTC).replace(tzinfo=None)])
        con.commit()
    except duckdb.Error as error:
        con.rollback()
        raise MigrationFailed(
            f"the ledger {place} cannot get schema {number}: {str(error).splitlines()[0]}; it is as it was: go back "
            "to the Tamis that wrote it, and report this line"
        ) from error


def copy_file(con: duckdb.DuckDBPyConnection, path: Path, target: Path, held: ExitStack) -> None:
    """Copy a ledger that is open for writing, whole or not at all.

    Args:
        con: The ledger, in no transaction, and its file under a journal.
        path: Its file.
        target: The copy.
        held: Left after `con` is closed: a process that closes any handle of a file gives up its lock on it.
    """
    con.execute("CHECKPOINT")
    source = held.enter_context(path.open("rb"))
    with atomic_path(target) as temporary, temporary.open("wb") as copy:
        shutil.copyfileobj(source, copy)
