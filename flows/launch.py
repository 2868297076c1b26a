"""Starts the ranks of a program through an agent on each node, watches their heartbeats, and ends all of them together.

A rank program is a module of flows/ranks. Each rank logs to `<logs>/<program>-rank<r>.log`, shows progress in
`<program>-rank<r>.beat` and leaves its error, if any, in `<program>-rank<r>.error`; which rank was killed stands in
`<program>-agent.error`.
"""

from __future__ import annotations

import json
import logging
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.agents import GRACE_SECONDS, Launch, agent
from flows.announcements import announced
from flows.errors import BadInput, StageFailed
from flows.heartbeats import Watch
from storage.files import read_json

POLL_SECONDS = 0.1
logger = logging.getLogger("tamis")
KINDS = ("bad_input", "killed", "failed")


@dataclass(frozen=True)
class Progress:
    """Where a stage stands."""

    phase: str
    done: int
    total: int


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
    for stale in (*launch.logs.glob(f"{launch.program}-rank*"), *launch.logs.glob(f"{launch.program}-agent*.error")):
        stale.unlink()
    with announced(launch) as key, agent(launch, 0, key) as process:
        _watch(launch, process, show)
    if process.returncode != 0:
        _explain(launch, process.returncode)


def _watch(launch: Launch, agent: subprocess.Popen[bytes], show: Callable[[Progress], None]) -> None:
    shown: Progress | None = None
    watch = Watch([launch.file(rank, "beat") for rank in range(launch.ranks)], launch.heartbeat_seconds)
    while agent.poll() is None:
        time.sleep(POLL_SECONDS)
        if silence := watch.silent():
            raise StageFailed(
                f"{launch.program}: rank {silence.rank} {silence.why}no progress for {launch.heartbeat_seconds:g} s; "
                f"its log is {launch.file(silence.rank, 'log')}"
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


def _explain(launch: Launch, code: int) -> None:
    errors = _errors(launch)
    deadline = time.monotonic() + GRACE_SECONDS
    while launch.nodes > 1 and not _known(errors) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)  # another node may be about to say which of its ranks was killed
        errors = _errors(launch)
    if not errors:
        raise StageFailed(
            f"{launch.program}: ended with code {code}; its logs are {launch.logs}/{launch.program}-*.log"
        )
    for error in errors:
        logger.error("%s: %s", launch.program, error["message"], extra={"rank": error["rank"]})
    first = errors[0]
    if first["kind"] == "bad_input":
        raise BadInput(first["message"])
    who = "a rank" if first["rank"] is None else f"rank {first['rank']}"
    log = launch.logs if first["rank"] is None else launch.file(first["rank"], "log")
    raise StageFailed(f"{launch.program}: {who}: {first['message']}; its log is {log}")


def _errors(launch: Launch) -> list[dict[str, Any]]:
    """What ranks and agents have left, the cause first: what was given, a rank that was killed, those that lost it."""
    errors = [read_json(path) for node in range(launch.nodes) if (path := launch.agent(node, "error")).exists()]
    for rank in range(launch.ranks):
        if (path := launch.file(rank, "error")).exists():
            errors.append({"rank": rank} | read_json(path))
    return sorted(errors, key=lambda error: (KINDS.index(error["kind"]), error["time"]))


def _known(errors: list[dict[str, Any]]) -> bool:
    """Whether the cause is among them."""
    return bool(errors) and errors[0]["kind"] != "failed"
