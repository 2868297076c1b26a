"""The ledger under kill -9 and under another process's lock; real processes."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from storage.errors import LedgerLocked
from storage.ledger import Ledger

ROOT = Path(__file__).parents[2]
POINTS = 20_000

# Each cycle removes 20,000 points in one transaction (two inserts: the actions and the event), then restores them.
WRITER = f"""
import sys
from pathlib import Path
import pyarrow as pa
from storage.ledger import Ledger
from storage.points import Manifest
from storage.proposals import Proposal
ids = range({POINTS})
manifest = Manifest.build(ids, map(str, ids), map(str, ids))
rows = pa.table({{"point_id": list(ids), "action": ["remove"] * len(ids), "reason": ["r"] * len(ids),
                  "new_label": pa.nulls(len(ids), pa.int32()),
                  "score": [0.0] * len(ids), "threshold": [0.0] * len(ids)}})
ledger = Ledger(Path(sys.argv[1]))
last, unfinished = (ledger.last_cycle(), ledger.unfinished_cycle()) if ledger.exists else (None, None)
cycle = unfinished.cycle if unfinished else last.cycle + 1 if last else 1
while True:
    ledger.open_cycle(cycle, "d", {{}}, {{}}, "int")
    proposal = Proposal(cycle, rows, "d", "s", {{}})
    ledger.add_proposal(proposal)
    ledger.add_review(proposal.hash, "approve", "rule", "rule")
    print("applying", cycle, flush=True)
    ledger.apply_proposal(cycle, proposal.hash, manifest, "e", "c")
    print("applied", cycle, flush=True)
    ledger.roll_back(cycle, "rule", "")
    print("rolled_back", cycle, flush=True)
    cycle += 1
"""

HOLDER = """
import sys, duckdb
con = duckdb.connect(sys.argv[1]); print("held", flush=True); sys.stdin.readline()
"""


def start(code: str, ledger: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(ledger)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline(), "the process did not start"
    return process


def test_a_writer_killed_inside_a_transaction_leaves_all_of_it_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ledger.duckdb"
    for milliseconds in (2, 15, 40, 90, 200):
        writer = start(WRITER, path)
        time.sleep(milliseconds / 1000)
        writer.send_signal(signal.SIGKILL)
        said = writer.communicate()[0].splitlines()
        ledger = Ledger(path, patience=5)
        removed = len(ledger.removed_as_of())
        assert removed in (0, POINTS), "a removal is never half applied"
        last = ledger.last_cycle()
        assert last is not None
        states = [event.state for event in ledger.events(last.cycle)]
        assert (removed == POINTS) == (states[-1] == "applied"), "the event and the rows are one transaction"
        for line in said:
            state, cycle = line.split()
            if state != "applying":
                assert state in [event.state for event in ledger.events(int(cycle))], "what was acknowledged stays"


def test_the_ledger_waits_for_another_process_and_then_names_it(tmp_path: Path) -> None:
    path = tmp_path / "ledger.duckdb"
    Ledger(path).open_cycle(1, "d", {}, {}, "int")
    holder = start(HOLDER, path)
    with pytest.raises(LedgerLocked, match=rf"held by process {holder.pid} for more than 0\.2 s"):
        Ledger(path, patience=0.2).last_cycle()
    holder.kill()
    holder.communicate()
    assert Ledger(path, patience=0.2).last_cycle() is not None


def test_a_writer_that_waits_gets_its_turn(tmp_path: Path) -> None:
    path = tmp_path / "ledger.duckdb"
    Ledger(path).open_cycle(1, "d", {}, {}, "int")
    holder = start(HOLDER, path)
    waiting = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path; from storage.ledger import Ledger\n"
            "print('waiting', flush=True); Ledger(Path(sys.argv[1])).record_event(1, 'trained')",
            str(path),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    assert waiting.stdout is not None
    waiting.stdout.readline()
    time.sleep(0.3)  # long enough for it to meet the lock at least once
    holder.communicate("\n")
    waiting.communicate()
    assert waiting.returncode == 0
    assert Ledger(path).state(1) == "trained"
