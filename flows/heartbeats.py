"""Ranks watched by their heartbeats: which one is to blame once none shows progress."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Silence:
    """A rank that is held to have stopped the others, and what is known of it."""

    rank: int
    why: str


@dataclass
class Watch:
    """The heartbeat files of all ranks, on whatever nodes they run.

    A beat counts from when it is seen here, so that the clocks of nodes need not agree.

    Attributes:
        beats: File of each rank.
        patience: Seconds without progress of any rank.
        clock: Tells seconds.
    """

    beats: Sequence[Path]
    patience: float
    clock: Callable[[], float] = time.monotonic
    _seen: dict[Path, tuple[int, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._seen = {beat: (0, self.clock()) for beat in self.beats}

    def silent(self) -> Silence | None:
        """The rank to blame once none shows progress: one that is stopped, or else the one that fell silent first.

        Ranks wait for each other, so that one which hangs silences all, and one that waits for a slower one is not at
        fault.
        """
        for beat in self.beats:
            changed = beat.stat().st_mtime_ns if beat.exists() else 0
            if changed != self._seen[beat][0]:
                self._seen[beat] = (changed, self.clock())
        heard = [self._seen[beat][1] for beat in self.beats]
        if self.clock() - max(heard) <= self.patience:
            return None
        stopped = [rank for rank, beat in enumerate(self.beats) if beat.exists() and _is_stopped(beat)]
        return Silence(stopped[0], "is stopped and showed ") if stopped else Silence(heard.index(min(heard)), "showed ")


def _is_stopped(beat: Path) -> bool:
    """Whether the rank is a stopped process, which is known of this node's alone."""
    known = json.loads(beat.read_text())
    if known["host"] != socket.gethostname():
        return False
    try:
        return bool(psutil.Process(known["pid"]).status() == psutil.STATUS_STOPPED)
    except psutil.NoSuchProcess:
        return False
