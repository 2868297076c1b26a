"""The agent of a node: torchrun, or DeepSpeed's launcher, which starts the node's ranks and ends with them.

It dies with the process that started it and the ranks die with it, so that not even a `kill -9` leaves one behind.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from flows.sections.launching import Hosts, Launcher, Torchrun, nodes_of

GRACE_SECONDS = 5.0


@dataclass(frozen=True)
class Launch:
    """One program on some ranks.

    Attributes:
        program: Module of flows/ranks.
        plan: What its ranks read.
        ranks: On all nodes together.
        logs: Folder of logs, heartbeats and errors, which all nodes share.
        heartbeat_seconds: Without progress of any rank, after which all are ended.
        launcher: What starts them.
        announcement: File in which other nodes look for what to join; none if there are no others.
    """

    program: str
    plan: Path
    ranks: int
    logs: Path
    heartbeat_seconds: float
    launcher: Launcher = field(default_factory=Torchrun)
    announcement: Path | None = None

    def file(self, rank: int, suffix: str) -> Path:
        """The log, beat or error file of a rank."""
        return self.logs / f"{self.program}-rank{rank}.{suffix}"

    def agent(self, node: int, suffix: str) -> Path:
        """The log of a node's agent, or where it names a rank that was killed."""
        return self.logs / f"{self.program}-agent{node or ''}.{suffix}"

    @property
    def nodes(self) -> int:
        """How many nodes run an agent of their own."""
        return nodes_of(self.launcher)

    @property
    def here(self) -> int:
        """Ranks of each node, at most."""
        return self.ranks // self.nodes if isinstance(self.launcher, Torchrun) else max(self.launcher.slots.values())


@contextmanager
def agent(launch: Launch, node: int, key: str) -> Iterator[subprocess.Popen[bytes]]:
    """The agent of a node, in a session of its own, ended with all its ranks when the context is left.

    Args:
        launch: What to run.
        node: Which of the nodes this is, from 0.
        key: Of this launch, the same on all nodes and never used again.
    """
    with launch.agent(node, "log").open("wb") as log:
        process = subprocess.Popen(
            _command(launch, node, key),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=_environment(launch),
            start_new_session=True,
        )
        try:
            yield process
        finally:
            _end(process)


def _command(launch: Launch, node: int, key: str) -> list[str]:
    tied = [sys.executable, "-m", "flows.ranks.agent", str(os.getpid()), str(launch.agent(node, "error"))]
    return [*tied, *_launcher(launch, node, key), f"flows.ranks.{launch.program}", str(launch.plan)]


def _launcher(launch: Launch, node: int, key: str) -> list[str]:
    launcher = launch.launcher
    if not isinstance(launcher, Torchrun):
        return ["deepspeed", *_on_hosts(launcher, node)]
    where = ["--standalone"]
    if launcher.rdzv_endpoint is not None:
        where = ["--nnodes", str(launcher.nnodes), "--node-rank", str(node), "--rdzv-backend", "static"]
        where += ["--rdzv-endpoint", launcher.rdzv_endpoint, "--rdzv-id", key]
    return ["torchrun", *where, "--nproc-per-node", str(launch.here), "--max-restarts", "0", "-m"]


def _on_hosts(hosts: Hosts, node: int) -> list[str]:
    """What DeepSpeed's launcher of one node is told, instead of by its own runner over ssh."""
    slots = hosts.slots
    world = json.dumps({host: list(range(count)) for host, count in slots.items()}).encode()
    return [
        f"--world_info={base64.urlsafe_b64encode(world).decode()}",
        f"--master_addr={next(iter(slots))}",
        f"--master_port={hosts.port}",
        f"--node_rank={node}",
        "--no_local_rank",
        "--module",
    ]


def _environment(launch: Launch) -> dict[str, str]:
    threads = max(1, len(os.sched_getaffinity(0)) // launch.here)
    here = str(Path(__file__).resolve().parents[1])
    path = os.environ.get("PYTHONPATH")
    return os.environ | {
        "PYTHONPATH": f"{here}{os.pathsep}{path}" if path else here,
        "PYTHONSAFEPATH": "1",  # the current folder may hold a package named like one of ours
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "ignore::FutureWarning",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
    }


def _end(process: subprocess.Popen[bytes]) -> None:
    for sign in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        os.killpg(process.pid, sign)
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            continue
