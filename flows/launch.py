"""Starts the ranks of a program with torchrun, watches their heartbeats, and ends all of them together.

A rank program is a module of flows/ranks run as `python -m flows.ranks.agent … -m flows.ranks.<program> PLAN`. Each
rank logs to `<logs>/<program>-rank<r>.log`, shows progress in `<program>-rank<r>.beat` and leaves its error, if any, in
`<program>-rank<r>.error`; which rank was killed stands in `<program>-agent.error`. The agent dies with this process and
the ranks die with the agent, so that not even a `kill -9` leaves one behind.
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

import psutil

from flows.errors import BadInput, StageFailed
from storage.files import read_json

POLL_SECONDS = 0.1
GRACE_SECONDS = 5.0
KINDS = ("bad_input", "killed", "failed")


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

    @property
    def killed(self) -> Path:
        """Where the agent names a rank that was killed."""
        return self.logs / f"{self.program}-agent.error"


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
    for stale in (*launch.logs.glob(f"{launch.program}-rank*"), *launch.logs.glob(launch.killed.name)):
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
        str(launch.killed),
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
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
    }


def _watch(launch: Launch, agent: subprocess.Popen[bytes], show: Callable[[Progress], None]) -> None:
    shown: Progress | None = None
    started = time.time()
    while agent.poll() is None:
        time.sleep(POLL_SECONDS)
        if silent := _silent(launch, started):
            rank, why = silent
            raise StageFailed(
                f"{launch.program}: rank {rank} {why}no progress for {launch.heartbeat_seconds:g} s; "
                f"its log is {launch.file(rank, 'log')}"
            )
        now = _read_beat(launch.file(0, "beat"))
        if now is not None and now != shown:
            shown = now
            show(now)


def _silent(launch: Launch, started: float) -> tuple[int, str] | None:
    """The rank to blame once none shows progress: one that is stopped, or else the one that fell silent first.

    Ranks wait for each other, so that one which hangs silences all, and one that waits for a slower one is not at
    fault.
    """
    beats = {rank: launch.file(rank, "beat") for rank in range(launch.ranks)}
    heard = {rank: beat.stat().st_mtime if beat.exists() else started for rank, beat in beats.items()}
    first = min(heard, key=heard.__getitem__)
    if time.time() - max(heard.values()) <= launch.heartbeat_seconds:
        return None
    stopped = [
        rank for rank, beat in beats.items() if beat.exists() and _is_stopped(json.loads(beat.read_text())["pid"])
    ]
    return (stopped[0], "is stopped and showed ") if stopped else (first, "showed ")


def _is_stopped(pid: int) -> bool:
    return bool(psutil.pid_exists(pid) and psutil.Process(pid).status() == psutil.STATUS_STOPPED)


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
        {"rank": rank} | read_json(path)
        for rank, path in [(-1, launch.killed), *((rank, launch.file(rank, "error")) for rank in range(launch.ranks))]
        if path.exists()
    ]
    # the cause first: what was given, then a rank that was killed, then those that only lost it
    errors.sort(key=lambda error: (KINDS.index(error["kind"]), error["time"], error["rank"]))
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
