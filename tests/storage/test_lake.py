"""What a ledger on DuckLake has of its own: writers of several machines, snapshots, a bucket, servers that are gone."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from pathlib import Path

import duckdb
import pytest

from storage import lake, lake_errors, migration
from storage.errors import LedgerLocked, LedgerMissing, ServerUnusable, StorageError, WorkspaceTooNew, WriteFailed
from storage.lake import Lake
from storage.ledger import Ledger
from tests.services import Service, free_ports
from tests.storage.ledgers import another_hand, applied, full_ledger, opened, proposal, removed

pytestmark = pytest.mark.service
NewLake = Callable[[str | Path], Lake]
ROOT = Path(__file__).parents[2]

WRITER = """
import sys
from storage.lake import Lake
from storage.ledger import Ledger
ledger = Ledger(Lake(*sys.argv[1:4]), patience=120)
for turn in range(int(sys.argv[5])):
    ledger.record_event(1, "failed", key=f"{sys.argv[4]}/{turn}")
    print(turn, flush=True)
"""


def writer(place: Lake, name: str, turns: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", WRITER, place.catalog, place.data, place.name, name, str(turns)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_writers_take_turns_and_one_that_is_killed_leaves_all_it_acknowledged_and_no_lock(
    new_lake: NewLake, tmp_path: Path
) -> None:
    place = new_lake(tmp_path)
    ledger = Ledger(place, patience=120)
    opened(ledger, 1)
    writers = [writer(place, "killed", 1000), writer(place, "a", 4), writer(place, "b", 4)]
    out = writers[0].stdout
    assert out is not None
    acknowledged = [int(out.readline()) for _ in range(2)]
    time.sleep(0.3)
    writers[0].send_signal(signal.SIGKILL)
    acknowledged += [int(line) for line in writers[0].communicate()[0].splitlines()]
    assert [process.wait() for process in writers[1:]] == [0, 0]
    keys = [event.key for event in ledger.events(1) if event.state == "failed"]
    assert {key for key in keys if not key.startswith("killed")} == {f"{name}/{n}" for name in "ab" for n in range(4)}
    theirs = [key for key in keys if key.startswith("killed")]
    assert theirs == [f"killed/{n}" for n in range(len(theirs))]
    assert len(acknowledged) <= len(theirs) <= len(acknowledged) + 1, "a commit that nobody heard of may be there"
    assert ledger.verify().holds


def test_who_waits_too_long_for_a_writer_is_told_so_and_a_reader_does_not_wait(
    new_lake: NewLake, tmp_path: Path
) -> None:
    ledger = Ledger(new_lake(tmp_path), patience=0.2)
    opened(ledger, 1)
    with ledger._write():
        assert ledger.state(1) == "opened"
        with pytest.raises(LedgerLocked, match=r"written to by another process for more than 0\.2 s"):
            ledger.record_event(1, "trained")
    assert ledger.record_event(1, "trained"), "who was refused has written nothing"


def test_a_writer_that_lost_its_lock_is_refused_by_the_lake_itself(
    new_lake: NewLake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(new_lake(tmp_path))
    opened(ledger, 1)
    monkeypatch.setattr(lake, "_locked", lambda *_: nullcontext())
    with pytest.raises(LedgerLocked, match="by another process meanwhile; run again"):
        _overtaken(ledger)
    assert [event.state for event in ledger.events(1)] == ["opened", "trained"]
    assert ledger.verify().holds


def _overtaken(ledger: Ledger) -> None:
    with ledger._write() as con:
        con.execute("INSERT INTO events BY NAME SELECT * EXCLUDE (seq) REPLACE ('late' AS key) FROM events")
        ledger.record_event(1, "trained")


def test_every_commit_is_a_snapshot_with_who_did_what_and_the_ledger_as_it_was(
    new_lake: NewLake, tmp_path: Path
) -> None:
    place = new_lake(tmp_path)
    ledger = full_ledger(place)
    before = ledger.head()
    assert not ledger.record_event(1, "promoted")
    with another_hand(place) as con:
        [(name,)] = con.execute("SELECT current_database()").fetchall()
        found = con.execute(f"SELECT snapshot_id, author, commit_message FROM {name}.snapshots()").fetchall()
        said = {(author, message): snapshot for snapshot, author, message in found}
        for told in (("ada", "cycle 1: applied"), ("bob", "cycle 2: restore"), ("ada", "cycle 3: rejected")):
            assert told in said
        at = said["ada", "cycle 1: applied"]
        assert con.execute(f"SELECT count(*) FROM actions AT (VERSION => {at})").fetchall() == [(2,)]
    assert max(said.values()) == found[-1][0], "a call that changes nothing is no snapshot"
    assert ledger.head() == before


def test_what_another_hand_does_in_the_lake_is_found(new_lake: NewLake, tmp_path: Path) -> None:
    ledger = full_ledger(new_lake(tmp_path))
    head = ledger.head()
    for table, change in {
        "reviews": "UPDATE reviews SET actor = 'eve' WHERE cycle = 1",
        "proposal_rows": "DELETE FROM proposal_rows WHERE point_id = '4'",
        "actions": "INSERT INTO actions FROM actions LIMIT 1",
    }.items():
        with another_hand(ledger.path) as con:
            con.begin()
            con.execute(change)
            con.commit()
        broken = ledger.verify(head).broken
        assert broken is not None
        assert broken.table in (table, "reviews"), "the first in the chain is named"
    with another_hand(ledger.path) as con:
        con.execute("INSERT INTO events SELECT * REPLACE (seq + 1000 AS seq, 'x' AS key) FROM events LIMIT 1")
    with pytest.raises(StorageError):
        ledger.record_event(3, "failed", key="after")


def test_a_lake_of_an_older_schema_is_brought_up_to_date_and_its_newest_is_refused_by_the_older(
    new_lake: NewLake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(new_lake(tmp_path))
    removed(ledger, 1, [1, 2])
    head, steps = ledger.head(), migration.schema_files()
    step = (steps[-1][0] + 1, "ALTER TABLE reviews ADD COLUMN note VARCHAR; CREATE TABLE notes (seq BIGINT);")
    with monkeypatch.context() as newer:
        newer.setattr(migration, "schema_files", lambda: [*steps, step])
        assert ledger.removed_as_of() == {1, 2}
        assert ledger.verify(head).holds
        assert ledger.record_event(1, "promoted")
    with pytest.raises(WorkspaceTooNew, match=r"upgrade Tamis"):
        ledger.last_cycle()


def test_rows_go_to_a_bucket_and_come_back_from_it(new_lake: NewLake, object_store: Service) -> None:
    import boto3

    ledger = Ledger(new_lake("s3://tamis/ledger"))
    ledger.open_cycle(1, "data", {}, {}, "int")
    applied(ledger, proposal(1, list(range(10))))
    assert ledger.removed_as_of() == set(range(10))
    assert ledger.verify().holds
    found = boto3.client("s3").list_objects_v2(Bucket="tamis", Prefix="ledger/")["Contents"]
    assert any("/chain/" in item["Key"] for item in found)


def test_a_catalog_that_is_not_there_or_refuses_is_one_line(
    new_lake: NewLake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = new_lake(tmp_path)
    with pytest.raises(LedgerMissing, match=rf"no ledger at {place.name} in postgresql://"):
        Ledger(place).last_cycle()
    opened(Ledger(place), 1)
    elsewhere = Lake(place.catalog, str(tmp_path / "elsewhere"), place.name)
    gone = Lake(f"postgresql://tamis@127.0.0.1:{free_ports(1)[0]}/x", str(tmp_path), "gone")
    keyless = Lake(place.catalog, "s3://tamis/keyless", "keyless")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    for wrong, said in (
        (elsewhere, "its data are at .*: correct servers.ledger.data"),
        (gone, "does not answer: start PostgreSQL"),
        (keyless, "needs AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    ):
        with pytest.raises(StorageError, match=said) as got:
            opened(Ledger(wrong), 1)
        assert "\n" not in str(got.value)
    secret = "geheim"
    monkeypatch.setenv("PGPASSWORD", secret)
    with pytest.raises(ServerUnusable, match="refuses the password: set PGPASSWORD or PGPASSFILE") as got:
        Ledger(place).last_cycle()
    assert secret not in str(got.value)


def test_a_catalog_that_ends_while_it_is_read_is_one_line(new_lake: NewLake, tmp_path: Path) -> None:
    place = new_lake(tmp_path)
    opened(Ledger(place), 1)
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND usename IS NOT NULL"
    with ExitStack() as held:
        con = held.enter_context(lake.reading(place, 1))
        subprocess.run(["psql", "--quiet", "--output=/dev/null", place.catalog, "--command", end], check=True)
        with pytest.raises(ServerUnusable, match="does not answer: start PostgreSQL"), lake_errors.named(place):
            con.execute("FROM events").fetchall()
    assert Ledger(place).state(1) == "opened"


def test_a_commit_whose_answer_is_lost_is_not_said_to_have_failed() -> None:
    lost = duckdb.IOException("server closed the connection unexpectedly")
    with pytest.raises(WriteFailed, match="may or may not have been recorded; look with"), lake_errors.committing("l"):
        raise lost
    with pytest.raises(LedgerLocked, match="by another process meanwhile"), lake_errors.committing("l"):
        raise duckdb.TransactionException("Transaction conflict - attempting to insert")


def test_an_older_schema_is_seen_and_left_as_it_is(
    new_lake: NewLake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = new_lake(tmp_path)
    opened(Ledger(place), 1)
    assert lake.is_current(place)
    steps = migration.schema_files()
    monkeypatch.setattr(migration, "schema_files", lambda: [*steps, (steps[-1][0] + 1, "")])
    assert not lake.is_current(place)
