"""What every rank program shares: its place among the ranks, its log, its heartbeat and how it reports an error."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from flows.errors import BadInput
from flows.ranks.device import CPU, backend_of, device_of
from flows.ranks.lifeline import AGENT, die_with_parent
from flows.ranks.meter import Meter
from flows.sections.launching import LaunchConfig
from influence.errors import InfluenceError
from storage.errors import StorageError
from storage.files import JSON, atomic_write_json

T = TypeVar("T")

BEAT_SECONDS = 0.2
PIECE = 64 * 2**20  # bytes at a time in a collective: gloo slows down beyond
COLLECTIVE_TIMEOUT = timedelta(days=7)
"""A rank may wait long for one that works; one that hangs is found by its heartbeats."""


class Place(Protocol):
    """Where a process stands among those that share its work."""

    @property
    def index(self) -> int:
        """From 0."""

    @property
    def world(self) -> int:
        """How many there are."""

    @property
    def device(self) -> torch.device:
        """Where this one computes."""

    def progress(self, phase: str, done: int, total: int) -> None:
        """Show where the work stands."""

    def sum(self, tensor: Tensor) -> None:
        """Sum a tensor over all of them, in place."""

    def broadcast(self, tensor: Tensor, source: int) -> None:
        """Give a tensor of one of them to all others, in place."""

    def gather(self, value: T) -> list[T]:
        """What all of them have, in their order."""


@dataclass(frozen=True)
class Alone:
    """The only process; `show` is given its progress."""

    show: Callable[[str, int, int], None]
    index: int = 0
    world: int = 1
    device: torch.device = CPU

    def progress(self, phase: str, done: int, total: int) -> None:
        """Show where the work stands."""
        self.show(phase, done, total)

    def sum(self, tensor: Tensor) -> None:
        """Nothing: there is nothing to add."""

    def broadcast(self, tensor: Tensor, source: int) -> None:
        """Nothing: there is no one to give it to."""

    def gather(self, value: T) -> list[T]:
        """This one's alone."""
        return [value]


@dataclass
class Rank:
    """This process among the ranks.

    Attributes:
        index: From 0.
        world: How many ranks there are.
        device: Where it computes.
        meter: What it spends.
    """

    index: int
    world: int
    _beat: Path
    device: torch.device = CPU
    _last: float = 0.0
    meter: Meter = field(init=False)

    def __post_init__(self) -> None:
        self.meter = Meter(self.device)

    def progress(self, phase: str, done: int, total: int) -> None:
        """Show where the work stands; the launcher ends ranks that stop calling this."""
        now = time.time()
        self.meter.enter(phase)
        if now - self._last >= BEAT_SECONDS or done == total:
            self._last = now
            draft = self._beat.with_suffix(".beat-draft")
            here = {"pid": os.getpid(), "host": socket.gethostname()}
            draft.write_text(json.dumps({"phase": phase, "done": done, "total": total, **here}))
            os.replace(draft, self._beat)

    def sum(self, tensor: Tensor) -> None:
        """Sum a contiguous tensor over the ranks, in place."""
        with self.meter.exchange(tensor.nbytes if self.world > 1 else 0):
            for piece in _pieces(tensor):
                dist.all_reduce(piece)

    def broadcast(self, tensor: Tensor, source: int) -> None:
        """Give a contiguous tensor of one rank to all others, in place."""
        with self.meter.exchange(tensor.nbytes if self.world > 1 else 0):
            for piece in _pieces(tensor):
                dist.broadcast(piece, source)

    def gather(self, value: T) -> list[T]:
        """What all ranks have, in their order: a small object of each."""
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value)
        return found

    def report(self, **more: JSON) -> None:
        """Leave what was spent, and more, in the log and beside it as JSON."""
        figures = self.meter.figures() | more
        print(json.dumps(figures), flush=True)
        atomic_write_json(self._beat.with_suffix(".json"), figures)


def _pieces(tensor: Tensor) -> tuple[Tensor, ...]:
    pieces: tuple[Tensor, ...] = tensor.view(-1).split(PIECE // tensor.element_size())
    return pieces


@contextmanager
def rank_process(
    program: str, logs: Path, launch: LaunchConfig, connect: Callable[[torch.device, str], None] | None = None
) -> Iterator[Rank]:
    """Run the body of a rank program.

    Args:
        program: Its name, which its files carry.
        logs: Folder of its log, heartbeat and error.
        launch: Says where it computes.
        connect: Opens what else the program needs on the process group, of that device and backend.
    """
    die_with_parent(int(os.environ[AGENT]))
    index, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    stem = logs / f"{program}-rank{index}"
    with stem.with_suffix(".log").open("ab", buffering=0) as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
    try:
        device = device_of(launch, int(os.environ["LOCAL_RANK"]))
        backend = backend_of(launch, device)
        print(f"rank {index} of {world} on {device}, {backend}", flush=True)
        _connect(device, backend)
        if connect:
            connect(device, backend)
        yield Rank(index, world, stem.with_suffix(".beat"), device)
        dist.barrier()
    except (BadInput, StorageError, InfluenceError) as error:
        _leave(stem, "bad_input", str(error))
    except Exception as error:  # the process boundary: whatever it was, the launcher must be able to say it
        traceback.print_exc()
        _leave(stem, "failed", f"{type(error).__name__}: {error}".splitlines()[0])
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _connect(device: torch.device, backend: str) -> None:
    if device.type == "cuda":
        torch.cuda.set_device(device)  # nccl takes the current one
        torch.backends.cudnn.allow_tf32 = False  # convolutions would round float32 inputs to 10 bits, unasked
    dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT)


def _leave(stem: Path, kind: str, message: str) -> None:
    atomic_write_json(stem.with_suffix(".error"), {"kind": kind, "message": message, "time": time.time()})
    sys.exit(2 if kind == "bad_input" else 1)
