"""The hash chain of the ledger against another hand in the file."""

import shutil
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest

from storage import chain
from storage.chain import Broken
from storage.errors import LedgerBroken, StorageError
from storage.ledger import Ledger
from tests.storage.ledgers import full_ledger

KINDS = {
    "VARCHAR": "coalesce({}, '') || 'x'",
    "INTEGER": "coalesce({}, 0) + 1",
    "BIGINT": "coalesce({}, 0) + 1000",
    "DOUBLE": "nextafter(coalesce({}, 0), 1e9::DOUBLE)",
    "TIMESTAMP": "{} + INTERVAL 1 MICROSECOND",
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    return full_ledger(tmp_path_factory.mktemp("whole") / "ledger.duckdb")


@pytest.fixture
def kept(whole: Ledger, tmp_path: Path) -> Ledger:
    return Ledger(Path(shutil.copy(whole.path, tmp_path / "ledger.duckdb")), patience=60)


@pytest.fixture
def ledger(kept: Ledger) -> Ledger:
    """Without keys and checks, as another hand could leave it."""
    with duckdb.connect(str(kept.path)) as con:
        for table in ("actions", "reviews", "proposal_rows", "events", "proposals", "cycles"):
            con.execute(f"CREATE TABLE bare AS FROM {table}; DROP TABLE {table}; ALTER TABLE bare RENAME TO {table}")
    return kept


def change(ledger: Ledger, sql: str) -> None:
    with duckdb.connect(str(ledger.path)) as con:
        con.execute(sql)


def first_broken(ledger: Ledger) -> Broken:
    found = ledger.verify()
    assert not found.holds
    assert found.broken is not None
    return found.broken


def test_what_nobody_touched_verifies_to_the_last_row(ledger: Ledger) -> None:
    with duckdb.connect(str(ledger.path)) as con:
        counts = [con.sql(f"SELECT count(*) FROM {name}").fetchall()[0][0] for name in (*chain.TABLES, "chain")]
    assert sum(counts[:-1]) == counts[-1] == ledger.verify().rows
    assert all(counts), "a table without a row would be covered in vain"
    assert ledger.verify().head == ledger.head()


@pytest.mark.parametrize("table", chain.TABLES)
def test_a_change_of_any_column_of_any_table_is_found(ledger: Ledger, table: str) -> None:
    with duckdb.connect(str(ledger.path)) as con:
        columns = con.execute(
            "SELECT column_name, data_type FROM duckdb_columns() WHERE table_name = ? ORDER BY ALL", [table]
        ).fetchall()
        link = chain.head(con)
        for column, kind in columns:
            con.begin()
            row = f"(SELECT min(rowid) FROM {table})"
            con.execute(f'UPDATE {table} SET "{column}" = {KINDS[kind].format(column)} WHERE rowid = {row}')
            found = chain.verify(con)
            con.rollback()
            assert found.broken is not None, f"{table}.{column}"
            assert (found.broken.table, found.head == link) == (table, False), f"{table}.{column}: {found.broken}"
        assert chain.verify(con).holds


def test_the_first_broken_row_is_named_with_what_is_wrong(ledger: Ledger) -> None:
    with duckdb.connect(str(ledger.path)) as con:
        [(action,), (later,)] = con.sql("SELECT seq FROM actions ORDER BY seq LIMIT 2").fetchall()
        [(of,)] = con.sql("SELECT min(seq) FROM proposals").fetchall()
        [(opened,)] = con.sql("SELECT min(seq) FROM events").fetchall()
    change(ledger, f"UPDATE actions SET score = 1 WHERE seq >= {later}")
    assert first_broken(ledger) == Broken("actions", later, "", "changed")
    change(ledger, f"DELETE FROM actions WHERE seq = {action}")
    assert first_broken(ledger) == Broken("actions", action, "", "missing")
    zero = "SELECT * REPLACE ('0' AS point_id) FROM proposal_rows WHERE cycle = 1 AND point_id = '1'"
    change(ledger, f"INSERT INTO proposal_rows BY NAME {zero}")
    assert first_broken(ledger) == Broken("proposal_rows", of, "0", "added")
    change(ledger, "DELETE FROM cycles WHERE cycle = 1")
    assert first_broken(ledger) == Broken("cycles", opened, "1", "missing")


def test_a_row_that_hangs_on_nothing_is_found_and_never_enters_the_chain(ledger: Ledger) -> None:
    change(ledger, "INSERT INTO cycles BY NAME SELECT * REPLACE (4 AS cycle) FROM cycles WHERE cycle = 3")
    assert first_broken(ledger) == Broken("cycles", chain.NOWHERE, "4", "added")
    assert first_broken(ledger).text.startswith(
        "a row that hangs on none of cycles (cycle 4) was added by another hand"
    )
    forged = "SELECT * REPLACE (repeat('e', 64) AS hash) FROM proposal_rows WHERE point_id = '1'"
    change(ledger, f"DELETE FROM cycles WHERE cycle = 4; INSERT INTO proposal_rows BY NAME {forged}")
    forge_all(ledger)
    assert first_broken(ledger) == Broken("proposal_rows", chain.NOWHERE, "1", "added")


TAMPER: dict[str, str] = {
    "two numbers swapped": "UPDATE actions SET seq = CASE seq WHEN a THEN b ELSE a END FROM (SELECT min(seq) AS a, "
    "max(seq) AS b FROM actions) WHERE seq IN (a, b)",
    "a row added": "INSERT INTO actions BY NAME SELECT * REPLACE (nextval('ledger_seq') AS seq, '9' AS point_id) "
    "FROM actions LIMIT 1",
    "a row twice": "INSERT INTO reviews FROM reviews LIMIT 1",
    "a link changed": "UPDATE chain SET sha256 = repeat('0', 64) WHERE seq = (SELECT min(seq) FROM actions)",
    "a link deleted": "DELETE FROM chain WHERE name = 'reviews'",
    "a row and its link deleted": "DELETE FROM actions WHERE seq = (SELECT min(seq) FROM actions); DELETE FROM chain "
    "WHERE name = 'actions' AND seq NOT IN (SELECT seq FROM actions)",
    "a link twice": "INSERT INTO chain FROM chain WHERE name = 'actions' LIMIT 1",
    "a value moved to its neighbour": "UPDATE reviews SET how = how || reason, reason = '' WHERE reason <> ''",
}


@pytest.mark.parametrize("sql", TAMPER.values(), ids=TAMPER)
def test_rows_and_links_that_were_tampered_with_are_found(ledger: Ledger, sql: str) -> None:
    assert ledger.verify().holds
    change(ledger, sql)
    assert not ledger.verify().holds


def forge_all(ledger: Ledger) -> None:
    """Change a row and compute the whole chain anew."""
    with duckdb.connect(str(ledger.path)) as con:
        con.execute("UPDATE actions SET actor = 'eve'; DELETE FROM chain")
        chain.draw(con)
        chain.extend(con, after=0)


def cut(ledger: Ledger) -> None:
    """Delete the last event with its link."""
    change(ledger, "DELETE FROM events WHERE seq = (SELECT max(seq) FROM events)")
    change(ledger, "DELETE FROM chain WHERE seq = (SELECT max(seq) FROM chain)")


@pytest.mark.parametrize("forge", [forge_all, cut])
def test_a_chain_computed_anew_or_cut_is_told_by_a_head_kept_elsewhere(
    ledger: Ledger, forge: Callable[[Ledger], None]
) -> None:
    head = ledger.head()
    forge(ledger)
    assert ledger.verify().holds, "without the head nothing is wrong"
    found = ledger.verify(head)
    assert (found.broken, found.anchored, found.holds) == (None, False, False)


def test_a_head_of_earlier_holds_as_long_as_nothing_before_it_changed(kept: Ledger) -> None:
    head = kept.head()
    kept.record_event(3, "failed", key="1")
    assert kept.head() != head
    assert kept.verify(head).holds
    assert kept.verify(head[:12]).anchored
    for wrong in ("", head[:11], head + "0", "x" * 64):
        with pytest.raises(StorageError, match="12 to 64 hex digits"):
            kept.verify(wrong)


def test_rows_of_another_hand_never_enter_the_chain(kept: Ledger) -> None:
    change(kept, TAMPER["a row added"])
    seq = first_broken(kept).seq
    kept.record_event(3, "failed", key="1")
    assert first_broken(kept) == Broken("actions", seq, "", "added")
    change(kept, "UPDATE actions SET seq = 10000 WHERE point_id = '9'")
    with pytest.raises(LedgerBroken, match="row 10000 of actions has a number that Tamis has not given out"):
        kept.record_event(3, "failed", key="2")
