"""The commands around a cycle: what stands where, and the MLflow UI."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from flows.config import Config, load
from flows.errors import BadInput
from flows.moving import in_force, manifest_of_cycle
from flows.stores import ledger_of
from storage.connection import utc_now
from storage.ledger import Ledger
from storage.points import Manifest

GRACE_SECONDS = 10.0
UI_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # a UI to look at needs none of its workers
}


@dataclass(frozen=True)
class Status:
    """Where the newest cycle stands; `cycle` 0 means that none was opened.

    Attributes:
        review: What the review of the open proposal still takes; empty where any one person may decide at any time.
    """

    workspace: Path
    cycle: int
    state: str
    proposal: str
    proposed: int
    removed: int
    next_command: str
    review: str = ""


def open_ledger(file: Path) -> Ledger:
    """The ledger of a tamis.toml's workspace."""
    return ledger_of(load(file))


def status_of(file: Path) -> Status:
    """Where the newest cycle of a tamis.toml stands."""
    config = load(file)
    ledger = ledger_of(config)
    last = ledger.last_cycle() if ledger.exists else None
    command = f"tamis run {shlex.quote(str(file))}"
    if last is None:
        return Status(config.workspace, 0, "no cycle yet", "", 0, 0, command)
    state = ledger.state(last.cycle)
    proposal = ledger.proposal(last.cycle)
    opened = ledger.open_proposal()
    if state == "awaiting_review" and proposal is not None and opened is not None and not opened.lapsed(utc_now()):
        command = f"tamis approve {proposal.hash[:12]} --by NAME --file {shlex.quote(str(file))}"
    return Status(
        workspace=config.workspace,
        cycle=last.cycle,
        state=state,
        proposal=proposal.hash if proposal else "",
        proposed=proposal.size if proposal else 0,
        removed=_standing(config, ledger, last.cycle),
        next_command=command,
        review=opened.said if opened is not None else "",
    )


def _standing(config: Config, ledger: Ledger, cycle: int) -> int:
    """Points removed by now that the newest data set has, with the content that they were removed with."""
    manifest = manifest_of_cycle(config.workspace, cycle)
    return len(in_force(ledger, cycle, Manifest.read(manifest)).removed) if manifest.exists() else 0


def serve_ui(file: Path, port: int) -> int:
    """Run the MLflow UI on the loopback address until it ends or Ctrl-C; returns its exit code."""
    config: Config = load(file)
    if config.servers.mlflow:
        raise BadInput(f"servers.mlflow: the runs of this workspace are at {config.servers.mlflow}; open that page")
    store = config.workspace / "mlflow.db"
    if not store.exists():
        raise BadInput(f"workspace {config.workspace}: no cycle was run in it yet; `tamis run` opens one")
    if not port:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", f"sqlite:///{store}"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    environment = os.environ | UI_ENVIRONMENT
    print(f"MLflow: http://127.0.0.1:{port} (Ctrl-C ends it)", flush=True)
    server = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        return server.wait()
    except KeyboardInterrupt:
        return 130
    finally:
        _end_group(server)


def _end_group(server: subprocess.Popen[bytes]) -> None:
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
