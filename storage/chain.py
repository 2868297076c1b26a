"""The hash chain of the ledger: every row of every table is covered by a link, every link by all links after it.

    link = sha256(link before + digest of the row), both in hex; the first follows 64 zeros

The digest of a row is over the table's name and the columns that are not null, by name, each with its length, so a
nullable column that a later schema adds changes no digest. Rows are linked in the transaction that wrote them, by
sequence number; a cycle hangs on its event `opened`, the rows of a proposal on the proposal. A transaction links only
numbers that it drew itself: what another hand adds, with or without anything to hang on, is never taken into the chain.

Whoever can write the file can also compute a whole new chain. The head, kept elsewhere, tells that too.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import duckdb
import pyarrow as pa

from storage.errors import LedgerBroken

FIRST = "0" * 64
"""What the first link follows, and the head of an empty ledger."""
READ = 100_000

NOWHERE = 2**63 - 1
"""In place of the number that a row hangs on, where it is not there; above every number drawn."""

SEQUENCED = {name: f"FROM {name} t" for name in ("events", "proposals", "reviews", "actions")}
HUNG = {
    "cycles": "FROM cycles t LEFT JOIN events s ON s.cycle = t.cycle AND s.state = 'opened'",
    "proposal_rows": "FROM proposal_rows t LEFT JOIN proposals s ON s.cycle = t.cycle AND s.hash = t.hash",
}
KEYS = {"cycles": "CAST(t.cycle AS VARCHAR)", "proposal_rows": "t.point_id"}
TABLES = tuple(SEQUENCED) + tuple(HUNG)
ORDER = "ORDER BY seq, name DESC, key"


@dataclass(frozen=True)
class Broken:
    """A row that is not as it was written.

    Attributes:
        table: Where it is.
        seq: Its sequence number, or that of the row it hangs on; `NOWHERE` if that is not there.
        key: The cycle or the point, of rows without a number of their own.
        what: `changed` (the row, or the chain at its place), `missing` or `added`.
    """

    table: str
    seq: int
    key: str
    what: Literal["changed", "missing", "added"]

    @property
    def text(self) -> str:
        """One line for a person."""
        key = {"cycles": f" (cycle {self.key})", "proposal_rows": f" (point {self.key})"}.get(self.table, "")
        said = {
            "changed": "is not what was written, or the chain was changed there",
            "missing": "is gone",
            "added": "was added by another hand, or its link is gone",
        }
        row = "a row that hangs on none" if self.seq == NOWHERE else f"row {self.seq}"
        return f"{row} of {self.table}{key} {said[self.what]}"


@dataclass(frozen=True)
class Verification:
    """What a check of the whole chain found.

    Attributes:
        rows: Rows verified, up to the broken one.
        head: The last link verified.
        anchored: Whether the head that was given is one of the links; None if none was given.
        broken: The first row that is not as it was written.
    """

    rows: int
    head: str
    anchored: bool | None
    broken: Broken | None

    @property
    def holds(self) -> bool:
        """Whether nothing is wrong."""
        return self.broken is None and self.anchored is not False


def draw(con: duckdb.DuckDBPyConnection) -> int:
    """The number after which the rows of this transaction begin.

    Raises:
        LedgerBroken: a row has a later one, and would be taken for one of this transaction.
    """
    [(number,)] = con.execute("SELECT nextval('ledger_seq')").fetchall()
    for name in SEQUENCED:
        [(last,)] = con.execute(f"SELECT max(seq) FROM {name}").fetchall()
        if last is not None and last > number:
            raise LedgerBroken(
                f"row {last} of {name} has a number that Tamis has not given out: another hand wrote it; "
                "see `tamis ledger verify`"
            )
    return int(number)


def extend(con: duckdb.DuckDBPyConnection, after: int) -> None:
    """Link the rows with a number above `after` and up to the last one that this connection drew."""
    drawn = f"seq > {after} AND seq <= currval('ledger_seq')"
    rows = con.execute(f"SELECT * FROM ({_digests(con)}) WHERE {drawn} {ORDER}").to_arrow_table()
    if not rows.num_rows:
        return
    links, link = list[str](), head(con)
    for digest in rows["digest"].to_pylist():
        link = _link(link, digest)
        links.append(link)
    con.register("links", rows.drop_columns("digest").append_column("sha256", pa.array(links, pa.string())))
    con.execute(f"INSERT INTO chain BY NAME FROM links {ORDER}")
    con.unregister("links")


def head(con: duckdb.DuckDBPyConnection) -> str:
    """The last link."""
    found = con.execute("SELECT sha256 FROM chain ORDER BY seq DESC, name, key DESC LIMIT 1").fetchall()
    return found[0][0] if found else FIRST


def verify(con: duckdb.DuckDBPyConnection, anchor: str | None = None) -> Verification:
    """Compute every link again, in order, up to the first that is wrong.

    Args:
        con: An open ledger.
        anchor: A head that was kept elsewhere, or its first digits: it must be one of the links.
    """
    query = f"SELECT * FROM ({_digests(con)}) FULL JOIN chain USING (seq, name, key) {ORDER}"
    link, rows, anchored = FIRST, 0, anchor is not None and FIRST.startswith(anchor)
    for seq, name, key, digest, stored in _fetch(con.execute(query)):
        if stored is None or digest is None or _link(link, digest) != stored:
            what: Literal["added", "missing", "changed"] = (
                "added" if stored is None else "missing" if digest is None else "changed"
            )
            return Verification(rows, link, None if anchor is None else anchored, Broken(name, seq, key, what))
        link, rows = stored, rows + 1
        anchored = anchored or (anchor is not None and stored.startswith(anchor))
    return Verification(rows, link, None if anchor is None else anchored, None)


def _link(before: str, digest: str) -> str:
    return hashlib.sha256((before + digest).encode()).hexdigest()


def _fetch(cursor: duckdb.DuckDBPyConnection) -> Iterator[tuple[Any, ...]]:
    while rows := cursor.fetchmany(READ):
        yield from rows


def _digests(con: duckdb.DuckDBPyConnection) -> str:
    """The query for seq, name, key and digest of every row."""
    columns = {
        table: [
            _written(column, kind)
            for column, kind in con.execute(
                f"SELECT column_name, column_type FROM (DESCRIBE {table}) ORDER BY 1"
            ).fetchall()
        ]
        for table in TABLES
    }
    parts = [
        f"SELECT {_place(name)} AS seq, '{name}' AS name, {KEYS.get(name, repr(''))} AS key, "
        f"sha256(concat_ws('|', '{name}', {', '.join(columns[name])})) AS digest {source}"
        for name, source in {**SEQUENCED, **HUNG}.items()
    ]
    return " UNION ALL ".join(parts)


def _place(table: str) -> str:
    return "t.seq" if table in SEQUENCED else f"coalesce(s.seq, {NOWHERE})"


def _written(column: str, kind: str) -> str:
    text = f"epoch_us(t.{column})" if kind == "TIMESTAMP" else f"t.{column}"
    text = f"CAST({text} AS VARCHAR)"
    return f"'{column}=' || strlen({text}) || ':' || {text}"
