"""One ledger and several processes at once, or several threads of one."""

import multiprocessing
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import duckdb
import pytest

from storage import connection
from storage.errors import LedgerLocked
from storage.lake import Lake
from storage.ledger import Ledger

PROCESSES, TURNS = 4, 6


def work(path: Path | Lake, me: int) -> None:
    ledger = Ledger(path, patience=300)
    for turn in range(TURNS):
        assert ledger.record_event(1, "failed", {"turn": turn}, key=f"{me}/{turn}")
        mine = [event.key for event in ledger.events(1) if event.key.startswith(f"{me}/")]
        assert mine == [f"{me}/{done}" for done in range(turn + 1)], "what was written is read, in order"


@pytest.mark.slow
def test_processes_that_write_and_read_at_once_lose_nothing_and_the_chain_verifies(place: Path | Lake) -> None:
    ledger = Ledger(place, patience=300)
    ledger.open_cycle(1, "d", {}, {}, "int")
    context = multiprocessing.get_context("forkserver")
    processes = [context.Process(target=work, args=(ledger.path, me)) for me in range(PROCESSES)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * PROCESSES
    events = [event.key for event in ledger.events(1) if event.state == "failed"]
    assert len(set(events)) == len(events) == PROCESSES * TURNS
    assert ledger.verify().holds


def test_a_reader_lets_other_readers_in(place: Path | Lake) -> None:
    ledger = Ledger(place, patience=60)
    ledger.open_cycle(1, "d", {}, {}, "int")
    with ledger._open():
        process = multiprocessing.get_context("forkserver").Process(target=Ledger(ledger.path, patience=0.1).head)
        process.start()
        process.join()
        assert process.exitcode == 0


def test_threads_that_write_at_once_never_leave_the_file_to_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process loses its lock of a file with the first handle that it closes, whichever thread needs it still."""
    ledger = Ledger(tmp_path / "ledger.duckdb")
    ledger.open_cycle(1, "d", {}, {}, "int")
    connect, both, kept_out = connection._connect, threading.Barrier(2), list[bool]()

    def together(path: Path, patience: float, read_only: bool) -> duckdb.DuckDBPyConnection:
        con = connect(path, patience, read_only)
        with suppress(threading.BrokenBarrierError):
            both.wait(timeout=1)
        return con

    def write() -> None:
        with connection.holding(ledger.path, 30):
            code = f"import duckdb; duckdb.connect({str(ledger.path)!r})"
            other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
            kept_out.append("Could not set lock" in other.stderr)

    monkeypatch.setattr(connection, "_connect", together)
    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert kept_out == [True, True]


def test_a_thread_waits_for_another_that_writes_as_long_as_it_was_told(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.duckdb", patience=0.1)
    ledger.open_cycle(1, "d", {}, {}, "int")
    with (
        connection.holding(ledger.path, 0.1),
        ThreadPoolExecutor(1) as pool,
        pytest.raises(LedgerLocked, match=r"held by another thread .*for more than 0\.1 s"),
    ):
        pool.submit(ledger.record_event, 1, "trained").result(timeout=20)
    assert ledger.record_event(1, "trained")
