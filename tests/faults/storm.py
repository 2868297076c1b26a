"""`make storm`: random processes of `tamis run` killed at random moments; every cycle ends as an undisturbed one.

    python -m tests.faults.storm --kills 100 --seed 7

A workspace is run until its cycle is over. As long as a run lasts, one process of its tree after the other is killed
with SIGKILL, each after a while that is drawn between nothing and what an undisturbed cycle takes: the command, the
agent, a rank, Prefect's server or whatever else there is. After each run nothing of it may live, but Prefect's
server where the command was killed, which goes with the next run; after each cycle ledger, proposal hash, MLflow and
weights are those of a workspace that was left alone.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from flows.server import end_left_server
from storage.ledger import Ledger
from tests.faults.harness import Bench, Command, Ended, alive, command_line, ledger, models, proposal_hashes, tracked

KINDS = {
    "flows.ranks.agent": "agent",
    "flows.ranks.train": "training rank",
    "flows.ranks.score": "scoring rank",
    "flows.ranks.preview": "preview rank",
    "prefect": "Prefect's server",
}
SOMETIMES = 4  # every fourth workspace runs under Prefect
ENDS = (0, 1, -9)  # that a run which lost a process may have; 2 would blame the input


@dataclass(frozen=True)
class Storm:
    """What was struck.

    Attributes:
        kills: By stage and kind of process.
        cycles: That ended, each as an undisturbed one.
    """

    kills: Counter[tuple[str, str]]
    cycles: int


def storm(folder: Path, kills: int, seed: int, say: Callable[[str], None] = lambda _: None) -> Storm:
    """Run cycles until so many processes were killed.

    Raises:
        AssertionError: A run left a process, blamed its input, or a cycle ended otherwise than an undisturbed one.
    """
    draw, struck, cycles = random.Random(seed), Counter[tuple[str, str]](), 0
    calm = Bench(folder / "calm")
    started = time.monotonic()
    assert calm.run().code == 0
    length, expected = time.monotonic() - started, outcome(calm)
    while struck.total() < kills:
        orchestrator = "prefect" if cycles % SOMETIMES == SOMETIMES - 1 else "none"
        bench = Bench(folder / f"{cycles:03d}", orchestrator=orchestrator, attempts=2, heartbeat=60.0)
        code = 1
        while code and not _over(bench):  # killed on its way out, a command has nothing left to do
            hits, ended = _strike(bench, draw, length, kills - struck.total())
            struck.update(hits)
            code = ended.code
            said = f"{struck.total():3d} {'; '.join(map(' '.join, hits)) or 'nothing'}: code {code} {ended.lines}"
            say(said)
            assert code in ENDS, said
            assert hits or code == 0, f"it failed though nothing was killed: {said}"
            assert not any("Traceback" in line for line in ended.lines), said
            assert _left(bench, ended) == [], said
        end_left_server(bench.workspace)
        assert outcome(bench) == expected, f"workspace {bench.folder} ended otherwise than {calm.folder}"
        cycles += 1
    return Storm(struck, cycles)


def _over(bench: Bench) -> bool:
    """Whether the ledger says that the cycle has ended."""
    ledger = Ledger(bench.workspace / "ledger.duckdb")
    return ledger.exists and ledger.last_cycle() is not None and ledger.unfinished_cycle() is None


def _left(bench: Bench, ended: Ended) -> list[str]:
    """What lives of a run that has ended; Prefect's server, which knows no parent, goes with the next one."""
    return [line for line in bench.left() if ended.code != -9 or "prefect.server" not in line]


def _strike(bench: Bench, draw: random.Random, longest: float, most: int) -> tuple[list[tuple[str, str]], Ended]:
    """Run, and kill one process after the other, at most so many, as long as the run lasts."""
    command, hits = bench.start(), list[tuple[str, str]]()
    while command.process.poll() is None and len(hits) < most:
        deadline = time.monotonic() + draw.uniform(0, longest)
        while command.process.poll() is None and time.monotonic() < deadline:
            command.tree()
            time.sleep(0.05)
        if command.process.poll() is None and (hit := _kill(command, bench, draw)):
            hits.append(hit)
    return hits, command.wait()


def _kill(command: Command, bench: Bench, draw: random.Random) -> tuple[str, str] | None:
    below = [process for process in command.tree() if alive(process)]
    process = draw.choice([command.process, *below])
    kind = "command" if process.pid == command.process.pid else _kind(process)
    stages = sorted(bench.cycle.glob("stages/*.json"), key=lambda path: path.stat().st_mtime)
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return None
    return f"after {stages[-1].stem}" if stages else "before train", kind


def _kind(process: psutil.Process) -> str:
    line = command_line(process)
    return next((kind for part, kind in KINDS.items() if part in line), "other")


def outcome(bench: Bench, server: str = "", name: str = "") -> dict[str, Any]:
    """What a cycle has come to: ledger, proposals, MLflow and weights."""
    weights = {
        path.relative_to(bench.workspace).as_posix(): found[2] for path, found in models(bench.workspace).items()
    }
    ledgers = ledger(bench.workspace)
    return {
        "weights": weights,
        "ledger": ledgers,
        "proposals": proposal_hashes(bench.workspace),
        "mlflow": tracked(bench.workspace, server, name),
    }


def main() -> None:
    """Storm, and print what was struck."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    asked = parser.parse_args()
    print(f"seed {asked.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        found = storm(Path(folder), asked.kills, asked.seed, lambda line: print(line, flush=True))
    for (stage, kind), count in sorted(found.kills.items()):
        print(f"{count:4d}  {stage}: {kind}")
    print(f"{found.kills.total()} kills, {found.cycles} cycles, each ended as an undisturbed one")


if __name__ == "__main__":
    main()
