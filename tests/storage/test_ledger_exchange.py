"""A ledger that leaves its workspace and comes back."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest

from storage import ledger_exchange, migration
from storage.errors import LedgerBroken, LedgerMissing, StorageError
from storage.lake import Lake
from storage.ledger import Ledger
from storage.ledger_exchange import TABLES, Format, export, read_back, snapshot
from storage.migration import schema_files
from tests.storage.conftest import PLACES
from tests.storage.ledgers import full_ledger
from tests.storage.test_migration import old_ledger


@pytest.fixture(scope="module", params=PLACES)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    folder = tmp_path_factory.mktemp("whole")
    lake = request.param == "lake"
    ledger = full_ledger(request.getfixturevalue("new_lake")(folder) if lake else folder / "ledger.duckdb")
    ledger.record_event(3, "failed", {"reason": 'a "quote", a comma,\nand a second line; \\N'}, key="1")
    ledger.record_event(3, "failed", {}, key="\\N")
    return ledger


def everything(ledger: Ledger) -> list[list[tuple[object, ...]]]:
    with ledger._open() as con:
        return [con.sql(f"FROM {table} ORDER BY ALL").fetchall() for table in TABLES]


@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_an_exported_ledger_comes_back_row_by_row_and_goes_on(whole: Ledger, form: Format, tmp_path: Path) -> None:
    found = export(whole, tmp_path / "out", form)
    seal = json.loads((tmp_path / "out/LEDGER.json").read_text())
    assert (seal["head"], found.rows) == (whole.head(), seal["rows"]["chain"])
    back = Ledger(tmp_path / "new/ledger.duckdb")
    assert read_back(tmp_path / "out", back).head == whole.head()
    assert [file.name for file in back.path.parent.iterdir()] == ["ledger.duckdb"]
    assert everything(back) == everything(whole)
    assert back.record_event(3, "nothing_to_do")
    assert back.verify(whole.head()).holds


def test_an_export_to_a_file_is_refused_in_a_line(whole: Ledger, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(StorageError, match=r"cannot be used as a folder \([^\n]+\); give a new folder$"):
            export(whole, folder, "parquet")


def test_an_export_that_was_tampered_with_is_refused_and_leaves_nothing(whole: Ledger, tmp_path: Path) -> None:
    export(whole, tmp_path / "out", "parquet")
    for table, column in {"actions": "actor", "events": "detail_json"}.items():
        copy = Path(shutil.copytree(tmp_path / "out", tmp_path / table))
        rows = pq.read_table(copy / f"{table}.parquet")
        at = rows.column_names.index(column)
        pq.write_table(rows.set_column(at, column, [["eve"] * len(rows)]), copy / f"{table}.parquet")
        with pytest.raises(LedgerBroken, match=rf"row \d+ of {table} is not what was written.*nothing was imported"):
            read_back(copy, Ledger(tmp_path / "new/ledger.duckdb"))
    (tmp_path / "out/reviews.parquet").unlink()
    with pytest.raises(StorageError, match=r"reviews\.parquet cannot be read"):
        read_back(tmp_path / "out", Ledger(tmp_path / "new/ledger.duckdb"))
    assert not list((tmp_path / "new").iterdir())


def test_an_export_whose_chain_was_computed_anew_is_told_by_its_head(whole: Ledger, tmp_path: Path) -> None:
    export(whole, tmp_path / "out", "parquet")
    other = full_ledger(tmp_path / "other.duckdb")
    export(other, tmp_path / "forged", "parquet")
    shutil.copy(tmp_path / "out/LEDGER.json", tmp_path / "forged/LEDGER.json")
    with pytest.raises(LedgerBroken, match=f"ends in {other.head()[:12]}, LEDGER.json says {whole.head()[:12]}"):
        read_back(tmp_path / "forged", Ledger(tmp_path / "ledger.duckdb"))


def test_an_import_never_replaces_a_ledger_nor_an_export_a_file(whole: Ledger, tmp_path: Path) -> None:
    export(whole, tmp_path / "out", "csv")
    with pytest.raises(StorageError, match="there is a ledger at"):
        read_back(tmp_path / "out", whole)
    with pytest.raises(StorageError, match="is not empty; give a new folder"):
        export(whole, tmp_path / "out", "csv")
    seal = json.loads((tmp_path / "out/LEDGER.json").read_text())
    for schema in (1, 9, None):
        (tmp_path / "out/LEDGER.json").write_text(json.dumps(seal | {"schema": schema}))
        with pytest.raises(StorageError, match=f"holds schema {schema}, this version of Tamis reads 2 to 3; import it"):
            read_back(tmp_path / "out", Ledger(tmp_path / "ledger.duckdb"))


def test_a_snapshot_is_a_ledger_of_its_own_at_one_moment(whole: Ledger, tmp_path: Path) -> None:
    export(whole, tmp_path / "out", "parquet")
    ledger = Ledger(tmp_path / "ledger.duckdb")
    if isinstance(whole.path, Lake):
        ledger = Ledger(replace(whole.path, name=f"{whole.path.name}_copy"))
    read_back(tmp_path / "out", ledger)
    snapshot(ledger, tmp_path / "copy.duckdb")
    ledger.record_event(3, "failed", key="later")
    copy = Ledger(tmp_path / "copy.duckdb")
    assert copy.head() == whole.head() != ledger.head()
    assert copy.verify().holds
    snapshot(ledger, copy.path)
    assert copy.head() == ledger.head(), "a later one replaces it"
    with pytest.raises(StorageError, match="is the ledger itself"):
        snapshot(copy, tmp_path / "../" / tmp_path.name / "copy.duckdb")
    with pytest.raises(LedgerMissing):
        snapshot(Ledger(tmp_path / "none.duckdb"), tmp_path / "copy")


def test_a_snapshot_is_imported_if_it_reaches_the_head_that_was_kept_elsewhere(whole: Ledger, tmp_path: Path) -> None:
    snapshot(whole, tmp_path / "copy.duckdb")
    head = whole.head()
    back = Ledger(tmp_path / "new" / "ledger.duckdb")
    assert read_back(tmp_path / "copy.duckdb", back, head[:12]).holds
    assert back.head() == head
    back.record_event(3, "nothing_to_do")  # it goes on
    assert back.verify(head).holds


def test_a_copy_from_before_a_head_one_that_was_changed_and_what_is_no_ledger_are_refused_and_leave_nothing(
    whole: Ledger, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.duckdb"
    snapshot(whole, copy)
    whole.record_event(3, "nothing_to_do")
    back = Ledger(tmp_path / "new" / "ledger.duckdb")
    with pytest.raises(LedgerBroken, match=f"{whole.head()[:12]} is no link of its chain: it was made before"):
        read_back(copy, back, whole.head())
    with pytest.raises(StorageError, match="'nonsense' is no head"):
        read_back(copy, back, "nonsense")
    with duckdb.connect(str(copy)) as con:
        con.execute("UPDATE events SET actor = 'eve' WHERE seq = (SELECT min(seq) FROM events)")
    with pytest.raises(LedgerBroken, match=r"row \d+ of events is not what was written.*nothing was imported"):
        read_back(copy, back)
    copy.write_bytes(b"no ledger")
    with pytest.raises(StorageError, match="cannot open the ledger"):
        read_back(copy, back)
    assert not list((tmp_path / "new").iterdir())


def test_a_snapshot_of_an_older_schema_is_imported_and_brought_up_to_date(tmp_path: Path) -> None:
    back = Ledger(tmp_path / "new" / "ledger.duckdb")
    assert read_back(old_ledger(tmp_path / "old.duckdb"), back).holds
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["ledger.duckdb"]


@pytest.mark.parametrize("form", ["parquet", "csv"])
@pytest.mark.parametrize("place", PLACES)
def test_an_export_of_an_older_schema_is_imported_and_brought_up_to_date(
    place: str, form: Format, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    steps = schema_files()[:2]
    with monkeypatch.context() as older:
        for module in (migration, ledger_exchange):
            older.setattr(module, "schema_files", lambda: steps)
        old = Ledger(old_ledger(tmp_path / "old.duckdb"))
        head = export(old, tmp_path / "out", form).head
        before = everything(old)
    assert json.loads((tmp_path / "out/LEDGER.json").read_text())["schema"] == 2
    lake = place == "lake"
    back = Ledger(request.getfixturevalue("new_lake")(tmp_path) if lake else tmp_path / "new" / "ledger.duckdb")
    assert read_back(tmp_path / "out", back, head[:12]).head == head
    assert everything(back) == before
    assert back.record_event(3, "expired")  # a state of the newest schema
    assert back.verify(head).holds


def test_an_export_of_an_older_schema_that_was_tampered_with_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = schema_files()[:2]
    with monkeypatch.context() as older:
        for module in (migration, ledger_exchange):
            older.setattr(module, "schema_files", lambda: steps)
        export(Ledger(old_ledger(tmp_path / "old.duckdb")), tmp_path / "out", "parquet")
    rows = pq.read_table(tmp_path / "out/actions.parquet")
    at = rows.column_names.index("actor")
    pq.write_table(rows.set_column(at, "actor", [["eve"] * len(rows)]), tmp_path / "out/actions.parquet")
    with pytest.raises(LedgerBroken, match=r"row \d+ of actions is not what was written.*nothing was imported"):
        read_back(tmp_path / "out", Ledger(tmp_path / "ledger.duckdb"))
    assert not (tmp_path / "ledger.duckdb").exists()
