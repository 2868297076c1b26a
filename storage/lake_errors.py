"""What DuckDB says of a catalog or a bucket that cannot be used, in one line that says what to do."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import duckdb

from storage.errors import LedgerLocked, LedgerMissing, ServerUnusable, StorageError, WriteFailed

PASSWORD = ("password authentication failed", "no password supplied", "no pg_hba.conf entry")
KEYS = ("HTTP 403", "403 (Forbidden)", "InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied")
SILENT = ("Could not establish connection", "Connection error", "Could not connect", "Connection refused")
GONE = ("server closed the connection", "terminating connection", "no connection to the server", "Connection refused")


@contextmanager
def named(lake: object) -> Iterator[None]:
    """Raise what DuckDB says of a lake as an error of this room."""
    try:
        yield
    except duckdb.Error as error:
        raise _said(lake, error) from error


@contextmanager
def committing(lake: object) -> Iterator[None]:
    """Like `named`, around a commit: one whose answer is lost may have been made."""
    try:
        yield
    except duckdb.Error as error:
        said = _said(lake, error)
        if isinstance(said, LedgerLocked):
            raise said from error
        text = _secretless(error)[:200]
        raise WriteFailed(
            f"the answer to a commit of the ledger {lake} is lost ({text}): it may or may not have been recorded; look "
            "with `tamis ledger log`, or run again"
        ) from error


def quoted(text: str) -> str:
    """Text for a SQL literal."""
    return text.replace("'", "''")


def missing(lake: object) -> str:
    """The line for a ledger that is not there yet."""
    return f"there is no ledger at {lake}; start a cycle with `tamis run`"


def overtaken(lake: object) -> str:
    """The line for a writer in whose turn another one wrote."""
    return f"the ledger {lake} was written to by another process meanwhile; run again"


def _said(lake: object, error: duckdb.Error) -> StorageError:
    text = _secretless(error)
    if "does not exist" in text and "Existing DuckLake" in text:
        return LedgerMissing(missing(lake))
    if any(sign in text for sign in PASSWORD):
        return ServerUnusable(f"the catalog of the ledger {lake} refuses the password: set PGPASSWORD or PGPASSFILE")
    if "Unable to connect to Postgres" in text or any(sign in text for sign in GONE):
        return ServerUnusable(
            f"the catalog of the ledger {lake} does not answer: start PostgreSQL or correct servers.ledger.catalog, "
            "then run again"
        )
    if any(sign in text for sign in KEYS):
        return ServerUnusable(
            f"the data of the ledger {lake} are refused by the object store: set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY"
        )
    if isinstance(error, duckdb.HTTPException) or any(sign in text for sign in SILENT):
        return ServerUnusable(
            f"the object store of the ledger {lake} does not answer as it should: {text[:200]}; see "
            "AWS_ENDPOINT_URL_S3, then run again"
        )
    if found := re.search(r'existing data path in the catalog "([^"]*)"', text):
        return StorageError(f"the ledger {lake} is there, but its data are at {found[1]}: correct servers.ledger.data")
    if "Transaction conflict" in text:
        return LedgerLocked(overtaken(lake))
    return WriteFailed(f"the ledger {lake} cannot be opened or written: {text[:300]}; nothing was recorded")


def _secretless(error: duckdb.Error) -> str:
    text = " ".join(str(error).split())
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        if os.environ.get(name):
            text = text.replace(os.environ[name], "…")
    return text
