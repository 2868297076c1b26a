"""Starts the ranks of a program with torchrun, watches their heartbeats, and ends all of them together.

A rank program is a module of flows/ranks run as `python -m flows.ranks.agent … -m flows.ranks.<program> PLAN`. Each
rank logs to `<logs>/<program>-rank<r>.log`, shows progress in `<program>-rank<r>.beat` and leaves its error, if any, in
`<program>-rank<r>.error`. The agent dies with this process and the ranks die with the agent, so that not even a
`kill -9` leaves one behind.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flows.errors import BadInput, StageFailed

POLL_SECONDS = 0.1
GRACE_SECONDS = 5.0


@dataclass(frozen=True)
class Progress:
    """Where a stage stands."""

    phase: str
    done: int
    total: int


@dataclass(frozen=True)
class Launch:
    """One program on some ranks."""

    program: str
    plan: Path
    ranks: int
    logs: Path
    heartbeat_seconds: float

    def file(self, rank: int, suffix: str) -> Path:
        """The log, beat or error file of a rank."""
        return self.logs / f"{self.program}-rank{rank}.{suffix}"


def run_ranks(launch: Launch, show: Callable[[Progress], None]) -> None:
    """Run a rank program to its end.

    Args:
        launch: What to run.
        show: Called with the progress of rank 0 whenever it changes.

    Raises:
        BadInput: A rank found its input bad.
        StageFailed: A rank failed, died or showed no progress in time; names the rank and its log.
    """
    launch.logs.mkdir(parents=True, exist_ok=True)
    for stale in launch.logs.glob(f"{launch.program}-rank*"):
        stale.unlink()
    with (launch.logs / f"{launch.program}-agent.log").open("wb") as log:
        agent = subprocess.Popen(
            _command(launch),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=_environment(launch),
            start_new_session=True,
        )
        try:
            _watch(launch, agent, show)
        finally:
            _end(agent)
    if agent.returncode != 0:
        _explain(launch, agent.returncode)


def _command(launch: Launch) -> list[str]:
    return [
        sys.executable,
        "-m",
        "flows.ranks.agent",
        str(os.getpid()),
        "--standalone",
        "--nproc-per-node",
        str(launch.ranks),
        "--max-restarts",
        "0",
        "-m",
        f"flows.ranks.{launch.program}",
        str(launch.plan),
    ]


def _environment(launch: Launch) -> dict[str, str]:
    threads = max(1, len(os.sched_getaffinity(0)) // launch.ranks)
    here = str(Path(__file__).resolve().parents[1])
    path = os.environ.get("PYTHONPATH")
    return os.environ | {
        "PYTHONPATH": f"{here}{os.pathsep}{path}" if path else here,
        "PYTHONSAFEPATH": "1",  # the current folder may hold a package named like one of ours
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "ignore::FutureWarning",
        "OMP_NUM_THREADS": str(threads),
        "DS_ACCELERATOR": os.environ.get("DS_ACCELERATOR", "cpu"),
    }


def _watch(launch: Launch, agent: subprocess.Popen[bytes], show: Callable[[Progress], None]) -> None:
    shown: Progress | None = None
    started = time.time()
    while agent.poll() is None:
        time.sleep(POLL_SECONDS)
        for rank in range(launch.ranks):
            beat = launch.file(rank, "beat")
            last = beat.stat().st_mtime if beat.exists() else started
            if time.time() - last > launch.heartbeat_seconds:
                raise StageFailed(
                    f"{launch.program}: rank {rank} showed no progress for {launch.heartbeat_seconds:g} s; "
                    f"its log is {launch.file(rank, 'log')}"
                )
        now = _read_beat(launch.file(0, "beat"))
        if now is not None and now != shown:
            shown = now
            show(now)


def _read_beat(path: Path) -> Progress | None:
    if not path.exists():
        return None
    beat = json.loads(path.read_text())
    return Progress(beat["phase"], beat["done"], beat["total"])


def _end(agent: subprocess.Popen[bytes]) -> None:
    for sign in (signal.SIGTERM, signal.SIGKILL):
        if agent.poll() is not None:
            return
        os.killpg(agent.pid, sign)
        try:
            agent.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            continue


def _explain(launch: Launch, code: int) -> None:
    errors = [
        json.loads(path.read_text()) | {"rank": rank}
        for rank in range(launch.ranks)
        if (path := launch.file(rank, "error")).exists()
    ]
    errors.sort(key=lambda error: (error["kind"] != "bad_input", error["time"], error["rank"]))
    if not errors:
        raise StageFailed(
            f"{launch.program}: ended with code {code}; its logs are {launch.logs}/{launch.program}-*.log"
        )
    first = errors[0]
    if first["kind"] == "bad_input":
        raise BadInput(first["message"])
    raise StageFailed(
        f"{launch.program}: rank {first['rank']}: {first['message']}; its log is {launch.file(first['rank'], 'log')}"
    )
