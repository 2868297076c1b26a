import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from storage.connection import writing
from storage.interruption import interruptible
from storage.ledger import Ledger

ENDLESS = "SELECT sum(a.range * b.range) FROM range(1000000000) a, range(1000000) b"


@pytest.fixture
def told_to_end(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Timer]:
    """A SIGTERM half a second after it is started, which ends the process as `tamis` does."""

    def leave(*_: object) -> None:
        raise SystemExit(143)

    before = signal.signal(signal.SIGTERM, leave)
    timer = threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    yield timer
    timer.join()
    signal.signal(signal.SIGTERM, before)


def test_a_signal_ends_the_process_in_the_middle_of_a_query_too_and_the_step_is_undone(
    tmp_path: Path, told_to_end: threading.Timer
) -> None:
    ledger = Ledger(tmp_path / "ledger.duckdb")
    ledger.open_cycle(1, "a" * 64, {}, {}, "int")
    told_to_end.start()
    with pytest.raises(SystemExit) as left:
        _write_for_ever(ledger)
    assert left.value.code == 143
    assert ledger.cycle(1).dataset_sha256 == "a" * 64
    assert ledger.verify().holds


def _write_for_ever(ledger: Ledger) -> None:
    with writing(ledger.path, 1.0) as con:
        con.execute("UPDATE cycles SET dataset_sha256 = 'b'")
        con.execute(ENDLESS).fetchall()


def test_any_other_error_of_a_block_stays_what_it_is() -> None:
    with pytest.raises(RuntimeError, match="of its own"), interruptible(duckdb.connect()):
        raise RuntimeError("of its own")
