"""Traps: a call of one function, found by name, at which something happens: a kill, an end of the disk, a failure.

    storage.ledger:Ledger.add_proposal after 1 kill     the whole tree dies once the first proposal is in the ledger
    rank 0 storage.score_store:write_chunk after 1 kill   … once rank 0 has written its first shard

`python -m tests.faults.trap FILE TRAP…` runs `tamis run FILE` with the traps set. One that begins with `rank` is set in
that rank: the launcher is made to start the ranks through this module. Nothing in the product knows of it.
"""

import functools
import importlib
import json
import os
import resource
import runpy
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

import flows.agents
from flows.agents import Launch
from storage.ledger_views import LedgerViews

TRAPS = "TEST_TRAPS"
ROOT = "TEST_ROOT"
SPRUNG = "TEST_SPRUNG"
LAUNCHER = flows.agents._launcher
LINES = 16 * 2**10


def kill_tree() -> None:
    """SIGKILL `tamis run` and everything below it, the calling process last of all."""
    root = psutil.Process(int(os.environ[ROOT]))
    below = root.children(recursive=True)
    for process in [root, *(child for child in below if child.pid != os.getpid())]:
        process.kill()
    os.kill(os.getpid(), signal.SIGKILL)


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_first() -> None:
    """SIGKILL this process, if no trap of this workspace has done so yet."""
    sprung = Path(os.environ[SPRUNG])
    if not sprung.exists():
        sprung.touch()
        kill_self()


def stop_self() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def hold() -> None:
    """Wait for ever, so that a test finds the work in the middle however fast it is."""
    threading.Event().wait()


def fill_disk() -> None:
    """From now on no file of this process and its children grows beyond a few lines, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (LINES, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def lose_patience() -> None:
    """Wait for a locked ledger no longer than a moment."""
    LedgerViews.__init__.__defaults__ = (0.5,)


ACTS: dict[str, Callable[[], None]] = {
    "kill": kill_tree,
    "kill_self": kill_self,
    "kill_first": kill_first,
    "stop_self": stop_self,
    "hold": hold,
    "fill_disk": fill_disk,
    "lose_patience": lose_patience,
}


def set_trap(trap: str) -> None:
    """Wrap the function that a trap names."""
    target, when, nth, act = trap.split()
    module, _, path = target.partition(":")
    *owners, name = path.split(".")
    owner: Any = functools.reduce(getattr, owners, importlib.import_module(module))
    function, calls = getattr(owner, name), 0

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if when == "before" and calls == int(nth):
            ACTS[act]()
        result = function(*args, **kwargs)
        if when == "after" and calls == int(nth):
            ACTS[act]()
        return result

    setattr(owner, name, wrapped)


def trapped(launch: Launch, node: int, key: str) -> list[str]:
    """The launcher's part of an agent's command, with the ranks started through this module."""
    return [*LAUNCHER(launch, node, key), "tests.faults.trap"]


def run(file: str, traps: list[str]) -> None:
    os.environ[ROOT] = str(os.getpid())
    os.environ[SPRUNG] = str(Path(file).with_name("sprung"))
    in_ranks = [trap.removeprefix("rank ") for trap in traps if trap.startswith("rank")]
    if in_ranks:
        os.environ[TRAPS] = json.dumps(in_ranks)
        flows.agents._launcher = trapped
    for trap in traps:
        if not trap.startswith("rank"):
            set_trap(trap)
    from flows.cli import main

    sys.argv = ["tamis", "run", file]
    main()


def rank(program: str) -> None:
    """A rank: its program with the traps set, in the rank that RANK of the trap names, or in all."""
    for trap in json.loads(os.environ[TRAPS]):
        which, _, rest = trap.partition(" ")
        if os.environ["RANK"] == which:
            set_trap(rest)
    del sys.argv[1]
    runpy.run_module(program, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    if sys.argv[1].startswith("flows.ranks."):
        rank(sys.argv[1])
    else:
        run(sys.argv[1], sys.argv[2:])
