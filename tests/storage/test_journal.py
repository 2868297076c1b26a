"""What a killed process had begun to write over is put back from the journal."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest

from storage import chain, journal
from storage.errors import LedgerLocked, WriteFailed
from storage.ledger import Ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    made = Ledger(tmp_path / "ledger.duckdb", patience=0.5)
    made.open_cycle(1, "d", {}, {}, "int")
    made.record_event(1, "trained")
    return made


def kill_in_a_checkpoint(ledger: Ledger) -> None:
    """Leave what kill -9 leaves when the first block after the three headers is half written."""
    journal.journal_of(ledger.path).write_bytes(ledger.path.read_bytes())
    with ledger.path.open("r+b") as file:
        file.seek(12288)
        file.write(b"\xff" * 5000)
    journal.log_of(ledger.path).write_bytes(b"half")


def test_the_journal_is_there_while_the_file_is_written_to_and_then_gone(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bytes] = []
    before, extend = ledger.path.read_bytes(), chain.extend

    def watched(con: duckdb.DuckDBPyConnection, after: int) -> None:
        seen.append(journal.journal_of(ledger.path).read_bytes())
        extend(con, after)

    monkeypatch.setattr(chain, "extend", watched)
    ledger.record_event(1, "scored")
    assert seen == [before]
    assert [path.name for path in ledger.path.parent.iterdir()] == ["ledger.duckdb"]


@pytest.mark.parametrize("act", [lambda one: one.events(1), lambda one: one.record_event(1, "scored")])
def test_whoever_opens_the_ledger_next_puts_back_what_a_killed_process_wrote_over(
    ledger: Ledger, act: Callable[[Ledger], Any]
) -> None:
    head = ledger.head()
    kill_in_a_checkpoint(ledger)
    with pytest.raises(duckdb.Error):
        duckdb.connect(str(ledger.path), read_only=True)
    act(ledger)
    assert ledger.verify(head).anchored
    assert ledger.verify().broken is None
    assert not journal.journal_of(ledger.path).exists()


def test_what_was_committed_but_not_acknowledged_is_undone_whole(ledger: Ledger) -> None:
    before = ledger.path.read_bytes()
    ledger.record_event(1, "scored")
    journal.journal_of(ledger.path).write_bytes(before)
    assert [event.state for event in ledger.events(1)] == ["opened", "trained"]
    assert ledger.record_event(1, "scored")
    assert ledger.verify().broken is None


def test_a_ledger_that_another_process_holds_is_not_put_back(ledger: Ledger) -> None:
    code = f"import duckdb, sys; c = duckdb.connect({str(ledger.path)!r}); print('held', flush=True); sys.stdin.read()"
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        journal.journal_of(ledger.path).write_bytes(b"of that process")
        assert not journal.recover(ledger.path)
        with pytest.raises(LedgerLocked):
            ledger.events(1)
    finally:
        holder.communicate()


def test_a_ledger_that_another_process_makes_first_is_not_replaced(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, late = ledger.path.read_bytes(), tmp_path / "late.duckdb"
    connect = duckdb.connect

    def slowly(path: str) -> duckdb.DuckDBPyConnection:
        late.write_bytes(known)  # by another process, since this one looked
        return connect(path)

    monkeypatch.setattr(duckdb, "connect", slowly)
    journal.create(late)
    assert late.read_bytes() == known
    assert sorted(path.name for path in tmp_path.iterdir()) == ["late.duckdb", "ledger.duckdb"]


def test_a_journal_that_cannot_be_put_back_is_one_line(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    kill_in_a_checkpoint(ledger)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(WriteFailed, match="No space left on device; free space"):
            ledger.events(1)
    assert [event.state for event in ledger.events(1)] == ["opened", "trained"]
