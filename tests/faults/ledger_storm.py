"""The second half of `make storm`: processes that write to a ledger are killed at random moments.

    python -m tests.faults.ledger_storm --kills 200 --seed 7

A writer runs cycle after cycle: proposal, approval, removal, restorations, roll-back or promotion. After each commit it
sends the head of the hash chain through a pipe. It is killed with SIGKILL a while after as many commits as are drawn,
and then: the chain verifies and holds the last head that was sent, so nothing acknowledged is lost; every proposal is
there with all its rows, applied to all its points or to none. The next writer goes on where it was.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import duckdb
import pyarrow as pa

from storage.ledger import Ledger
from storage.points import Manifest, PointId
from storage.proposals import Proposal

POINTS = 500
COMMITS = 12
LONGEST = 0.1
EACH = 20  # kills of one ledger, then a new one
PATIENCE = 120.0

HALF = {
    "a proposal without all its rows": "FROM proposals p WHERE size <> (SELECT count(*) FROM proposal_rows r "
    "WHERE r.cycle = p.cycle AND r.hash = p.hash)",
    "a proposal and no event": "FROM proposals p ANTI JOIN events e ON e.cycle = p.cycle AND e.key = p.hash",
    "a review and no event": "FROM reviews r ANTI JOIN events e ON e.cycle = r.cycle AND e.state = 'approved'",
    "a proposal half applied": "FROM cycles c WHERE (SELECT count(*) FROM actions a WHERE a.cycle = c.cycle AND "
    f"reason = 'r') <> {POINTS} * (SELECT count(*) FROM events e WHERE e.cycle = c.cycle "
    "AND e.state = 'applied')",
    "a cycle half rolled back": "FROM newest_as_of(1000000) a SEMI JOIN events e ON e.cycle = a.cycle AND "
    "e.state = 'rolled_back' AND a.reason = 'r'",
}


@dataclass(frozen=True)
class Storm:
    """What was struck: kills, and the heads that the writers sent before."""

    kills: int
    acknowledged: int


def write(path: Path, pipe: Connection, seed: int) -> None:
    """Write until killed; send the head after each commit."""
    draw, ledger = random.Random(seed), Ledger(path, PATIENCE)
    ids = range(POINTS)
    manifest = Manifest.build(ids, map(str, ids), map(str, ids))
    last, unfinished = (ledger.last_cycle(), ledger.unfinished_cycle()) if ledger.exists else (None, None)
    cycle = unfinished.cycle if unfinished else last.cycle + 1 if last else 1
    while True:
        removed = ledger.removed_as_of(cycle - 1) if ledger.exists else frozenset()
        proposal = Proposal(cycle, _rows(cycle, removed), "d", "s", {})
        for step in _steps(ledger, proposal, manifest, back=draw.random() < 0.5):
            step()
            pipe.send(ledger.head())
        cycle += 1


def _steps(ledger: Ledger, proposal: Proposal, manifest: Manifest, back: bool) -> list[Callable[[], object]]:
    cycle = proposal.cycle
    return [
        lambda: ledger.open_cycle(cycle, "d", {}, {}, "int"),
        lambda: ledger.add_proposal(proposal),
        lambda: ledger.add_review(proposal.hash, "approve", "rule", "rule"),
        lambda: ledger.apply_proposal(cycle, proposal.hash, manifest, "e", "c"),
        lambda: ledger.record_event(cycle, "retrained"),
        lambda: ledger.roll_back(cycle, "rule", "") if back else ledger.record_event(cycle, "promoted"),
    ]


def _rows(cycle: int, removed: frozenset[PointId]) -> pa.Table:
    """Every point once: what is out is restored, of the rest every other one removed, the others relabelled."""
    actions = ["restore" if i in removed else "remove" if i % 2 else "relabel" for i in range(POINTS)]
    return pa.table(
        {
            "point_id": list(range(POINTS)),
            "action": actions,
            "new_label": pa.array([cycle if action == "relabel" else None for action in actions], pa.int32()),
            "reason": ["r"] * POINTS,
            "score": [0.5] * POINTS,
            "threshold": [0.0] * POINTS,
        }
    )


def storm(folder: Path, kills: int, seed: int, say: Callable[[str], None] = lambda _: None) -> Storm:
    """Kill so many writers.

    Raises:
        AssertionError: Something acknowledged is lost, something is half applied, or the chain does not verify.
    """
    draw, acknowledged = random.Random(seed), 0
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    for kill in range(kills):
        path = folder / f"{kill // EACH:03d}.duckdb"
        ours, theirs = context.Pipe(duplex=False)
        writer = context.Process(target=write, args=(path, theirs, draw.randrange(2**31)))
        writer.start()
        theirs.close()
        heads = [ours.recv() for _ in range(draw.randint(1, COMMITS))]
        time.sleep(draw.uniform(0, LONGEST))
        writer.kill()
        writer.join()
        heads += _rest(ours)
        acknowledged += len(heads)
        rows = _check(path, heads[-1])
        say(f"{kill + 1:3d} killed after {len(heads)} commits: {rows:,} rows verified")
    return Storm(kills, acknowledged)


def _rest(pipe: Connection) -> list[str]:
    heads: list[str] = []
    try:
        while True:
            heads.append(pipe.recv())
    except (EOFError, OSError):  # also in the middle of a message
        return heads


def _check(path: Path, head: str) -> int:
    found = Ledger(path, PATIENCE).verify(head)
    assert found.broken is None, found.broken
    assert found.anchored, "what was acknowledged is lost"
    with duckdb.connect(str(path), read_only=True) as con:
        for what, query in HALF.items():
            assert con.sql(f"SELECT count(*) {query}").fetchall() == [(0,)], what
    return found.rows


def main() -> None:
    """Storm, and print what was struck."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    asked = parser.parse_args()
    print(f"seed {asked.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        found = storm(Path(folder), asked.kills, asked.seed, lambda line: print(line, flush=True))
    print(f"{found.kills} kills after {found.acknowledged} acknowledged commits: none lost, nothing half applied")


if __name__ == "__main__":
    main()
