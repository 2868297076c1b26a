"""One ledger and several processes at once."""

import multiprocessing
from pathlib import Path

import pytest

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
