"""A ledger outside its workspace: a copy that others may query, its tables as Parquet or CSV, and these read back.

    <folder>/actions.parquet  chain.parquet  cycles.parquet  …     one file per table (or .csv)
            /LEDGER.json                                           schema, rows, head of the hash chain; written last

What is read back is verified against its chain and its head before it becomes the ledger.
"""

import shutil
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, TypeAlias

import duckdb

from storage import chain, lake
from storage.connection import holding, reading
from storage.errors import LedgerBroken, StorageError
from storage.files import JSON, atomic_path, atomic_write_json, read_json, sync_file, sync_folder
from storage.lake import Lake, load_rows
from storage.ledger_queries import check_head
from storage.ledger_views import LedgerViews
from storage.migration import copy_file, run_steps, schema_files

Format: TypeAlias = Literal["parquet", "csv"]
TABLES = ("cycles", "events", "proposals", "proposal_rows", "reviews", "actions", "chain")
"""In the order in which they refer to each other."""
FIRST_EXPORTED = 2
"""The schema of the first Tamis that exported: the one that has a chain."""
SEAL = "LEDGER.json"
NULL = "\\N"
WRITE: dict[Format, str] = {
    "parquet": "FORMAT parquet, COMPRESSION zstd",
    "csv": f"FORMAT csv, HEADER, NULLSTR '{NULL}', FORCE_QUOTE *",
}


def snapshot(ledger: LedgerViews, target: Path) -> None:
    """Copy the ledger to a file of its own, as of one moment; an earlier copy there is replaced.

    Raises:
        StorageError: the target is the ledger itself.
    """
    ledger.require()
    if isinstance(ledger.path, Lake):
        lake.copy(ledger.path, target)
        return
    if target.resolve() == ledger.path.resolve():
        raise StorageError(f"{target} is the ledger itself; give its copy another name")
    with holding(ledger.path, ledger.patience) as (con, held):
        copy_file(con, ledger.path, target, held)


def export(ledger: LedgerViews, folder: Path, form: Format) -> chain.Verification:
    """Write every table to a folder that is empty or not there.

    Returns:
        The check of the chain, which stands in LEDGER.json.

    Raises:
        StorageError: the folder holds something, or is none and cannot be made.
        LedgerBroken: the chain does not hold.
    """
    ledger.require()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        holds = any(folder.iterdir())
    except OSError as error:
        raise StorageError(f"{folder} cannot be used as a folder ({error.strerror}); give a new folder") from error
    if holds:
        raise StorageError(f"{folder} is not empty; give a new folder")
    with reading(ledger.path, ledger.patience) as con:
        found = chain.verify(con)
        if found.broken is not None:
            raise LedgerBroken(f"{found.broken.text}; see `tamis ledger verify`")
        rows = {table: _count(con, table) for table in TABLES}
        for table in TABLES:
            with atomic_path(folder / f"{table}.{form}") as temporary:
                con.execute(f"COPY (FROM {table} ORDER BY ALL) TO {_text(temporary)} ({WRITE[form]})")
    seal = {"schema": schema_files()[-1][0], "format": form, "head": found.head, "rows": rows}
    atomic_write_json(folder / SEAL, seal)
    return found


def read_back(copy: Path, ledger: LedgerViews, head: str | None = None) -> chain.Verification:
    """Make a ledger of what `export` or `snapshot` wrote.

    Args:
        copy: The folder of an export or the file of a snapshot; it may be of an older schema.
        ledger: One that is not there yet.
        head: One that was kept elsewhere: it must be a link of the chain.

    Raises:
        StorageError: there is a ledger, or the copy is of a newer schema, not whole or none.
        LedgerBroken: its rows are not what its chain or its head says.
    """
    path = ledger.path
    if ledger.exists:
        raise StorageError(f"there is a ledger at {path}; import into a workspace without one")
    check_head(head)
    seal = None if copy.is_file() else _seal(copy)
    if seal is not None and seal["schema"] != schema_files()[-1][0]:
        with TemporaryDirectory() as work:
            return read_back(_raised(copy, seal, head, Path(work)), ledger, head)
    if isinstance(path, Lake):
        if seal is None:
            raise StorageError(f"{copy} is a file; a lake takes the folder of an export: `tamis ledger export`")
        with holding(path, ledger.patience) as (con, _):
            return _filled(con, copy, seal, head)
    part = path.with_name(f".{path.name}.import")
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear(part)
    try:
        if seal is None:
            shutil.copyfile(copy, part)
        with holding(part, 0) as (con, _):
            found = _filled(con, copy, seal, head)
            con.execute("CHECKPOINT")
        sync_file(part)
        part.rename(path)
        sync_folder(path.parent)
    finally:
        _clear(part)
    return found


def _seal(folder: Path) -> dict[str, JSON]:
    """What `export` wrote last."""
    seal: dict[str, JSON] = read_json(folder / SEAL)
    schema, newest = seal.get("schema"), schema_files()[-1][0]
    if not isinstance(schema, int) or not FIRST_EXPORTED <= schema <= newest:
        raise StorageError(
            f"{folder} holds schema {schema}, this version of Tamis reads {FIRST_EXPORTED} to {newest}; import it with "
            "the version that wrote it"
        )
    return seal


def _raised(folder: Path, seal: Mapping[str, JSON], head: str | None, work: Path) -> Path:
    """An export of an older schema, checked and then exported again under this one; returns the new folder."""
    old, schema = work / "ledger.duckdb", int(str(seal["schema"]))
    with closing(duckdb.connect(str(old))) as con:
        run_steps(con, old, 0, schema)
        _filled(con, folder, seal, head)
    export(LedgerViews(old), work / "export", "parquet")  # opening it brings it up to date
    return work / "export"


def _filled(
    con: duckdb.DuckDBPyConnection, copy: Path, seal: Mapping[str, JSON] | None, head: str | None
) -> chain.Verification:
    """Load an export, if it is one, and check what is there."""
    if seal is not None:
        _load(con, copy, "csv" if seal.get("format") == "csv" else "parquet")
    found = chain.verify(con, head)
    _check(copy, found, None if seal is None else str(seal.get("head")), head)
    return found


def _clear(part: Path) -> None:
    """Remove what an import that was killed has left, and the copy of a snapshot from before its schema was raised."""
    for file in part.parent.glob(f"{part.name}*"):
        file.unlink()


def _load(con: duckdb.DuckDBPyConnection, folder: Path, form: Format) -> None:
    for table in TABLES:
        file = _text(folder / f"{table}.{form}")
        source = f"read_parquet({file})"
        if form == "csv":
            as_text = f"header = true, all_varchar = true, nullstr = '{NULL}', allow_quoted_nulls = false, quote = '\"'"
            source = f"read_csv({file}, {as_text})"
        try:
            load_rows(con, table, source)
        except duckdb.Error as error:
            raise StorageError(f"{folder / table}.{form} cannot be read: {str(error).splitlines()[0]}") from error
    con.execute("SELECT max(nextval('ledger_seq')) FROM range((SELECT coalesce(max(seq), 0) FROM chain))").fetchall()


def _check(copy: Path, found: chain.Verification, sealed: str | None, kept: str | None) -> None:
    if found.broken is not None:
        raise LedgerBroken(f"{copy}: {found.broken.text}; nothing was imported")
    if sealed is not None and found.head != sealed:
        raise LedgerBroken(
            f"{copy}: the chain ends in {found.head[:12]}, {SEAL} says {sealed[:12]}; nothing was imported"
        )
    if kept is not None and not found.anchored:
        raise LedgerBroken(
            f"{copy}: {kept[:12]} is no link of its chain: it was made before that head, or is of another ledger; "
            "nothing was imported; take a newer copy, or leave out the head and lose what came after"
        )


def _count(con: duckdb.DuckDBPyConnection, table: str) -> int:
    [(count,)] = con.execute(f"SELECT count(*) FROM {table}").fetchall()
    return int(count)


def _text(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"
