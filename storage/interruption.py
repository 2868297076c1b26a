"""What a signal means in the middle of a query."""

from collections.abc import Iterator
from contextlib import contextmanager

import duckdb


@contextmanager
def interruptible(con: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """Let a signal's `SystemExit` or `KeyboardInterrupt` through, and end the query that it came in.

    DuckDB raises a `RuntimeError` in their place, and its threads go on with the query.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error.__cause__, SystemExit | KeyboardInterrupt):
            con.interrupt()
            raise error.__cause__ from None
        raise
