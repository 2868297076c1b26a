"""What a ledger of an older version goes through; tests/storage/ledger_schema_1.sql is one of 0.4.0."""

from pathlib import Path

import duckdb
import pytest

from storage import migration
from storage.errors import MigrationFailed
from storage.ledger import Ledger
from storage.migration import schema_files
from storage.records import Relabeling

OLD = Path(__file__).with_name("ledger_schema_1.sql")
TABLES = ("cycles", "events", "proposals", "proposal_rows", "reviews", "actions")


def old_ledger(path: Path) -> Path:
    with duckdb.connect(str(path)) as con:
        con.execute("CREATE TABLE schema_version (version INTEGER PRIMARY KEY, applied_at TIMESTAMP NOT NULL)")
        con.execute(schema_files()[0][1])
        con.execute("INSERT INTO schema_version VALUES (1, TIMESTAMP '2026-01-01')")
        con.execute(OLD.read_text())
    return path


def rows(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """Every row in the columns of schema 1."""
    with duckdb.connect(str(path), read_only=True) as con:
        new = {table: "EXCLUDE (new_label)" * ("new_label" in con.table(table).columns) for table in TABLES}
        return {table: con.sql(f"SELECT * {new[table]} FROM {table} ORDER BY ALL").fetchall() for table in TABLES}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return old_ledger(tmp_path / "ledger.duckdb")


def test_an_older_ledger_keeps_every_row_and_number_and_its_chain_verifies(path: Path) -> None:
    before, ledger = rows(path), Ledger(path)
    assert ledger.removed_contents() == {1: "c1", 3: "c3"}
    assert rows(path) == before
    found = ledger.verify()
    assert found.holds
    assert found.rows == sum(map(len, before.values()))
    assert ledger.relabeled_contents() == {}
    assert ledger.cooldown(3, 1) == {2, 4}


def test_an_older_ledger_goes_on_where_it_was(path: Path) -> None:
    ledger = Ledger(path)
    highest = max(event.seq for event in ledger.log())
    assert ledger.record_event(3, "moved", {"new": 2})
    assert ledger.log(1)[0].seq > highest
    assert ledger.restore([1], "ada", "") == 1
    assert ledger.verify().holds
    assert ledger.relabeled_contents() == dict[int, Relabeling]()


def test_the_file_is_copied_before_a_step_and_the_log_says_so(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = rows(path)
    Ledger(path).last_cycle()
    copy = path.with_name("ledger.duckdb.before-0002")
    assert str(copy) in caplog.text
    assert rows(copy) == before
    with duckdb.connect(str(copy)) as con:
        assert con.sql("FROM schema_version").fetchall()[0][0] == 1
    Ledger(path).last_cycle()
    assert len(caplog.records) == 1, "once"


def test_a_new_ledger_is_not_copied(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Ledger(tmp_path / "ledger.duckdb").open_cycle(1, "d", {}, {}, "int")
    assert [found.name for found in tmp_path.iterdir()] == ["ledger.duckdb"]
    assert not caplog.records


@pytest.mark.parametrize("where", ["first", "last"])
def test_a_step_that_fails_leaves_the_ledger_as_it_was(path: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before, (one, (number, sql)) = rows(path), schema_files()[:2]
    bad = "SELECT error('disk on fire');"
    monkeypatch.setattr(
        migration, "schema_files", lambda: [one, (number, bad + sql if where == "first" else sql + bad)]
    )
    for _ in range(2):
        with pytest.raises(MigrationFailed, match=r"cannot get schema 2: .*disk on fire; it is as it was"):
            Ledger(path).last_cycle()
        assert rows(path) == before
    monkeypatch.undo()
    assert Ledger(path).verify().holds
