"""What a team starts once: PostgreSQL, Prefect and MLflow on it, and `tamis serve`, as real processes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psutil

from flows.claims import service_url
from flows.config import load
from flows.stores import ledger_of
from tests.faults.harness import ROOT, TAMIS, alive, command_line, wait_for
from tests.services import HERE, Service, answers, composed, database, free_ports, postgres, prefect_server, running

PATIENCE = 1800.0  # seconds until a wait is given up; no test depends on how long anything takes
FLOW = "tamis-cycle"
PROGRAM = {
    "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    "COLUMNS": "200",
    "DO_NOT_TRACK": "true",
}


@dataclass
class Servers:
    """What everything else needs."""

    postgres: Service
    prefect: Service
    mlflow: Service


@contextmanager
def servers(folder: Path) -> Iterator[Servers]:
    """PostgreSQL, and Prefect and MLflow with their tables there; artifacts go through MLflow to a folder."""
    (port,) = free_ports(1)
    for name in ("prefect", "mlflow"):
        (folder / name).mkdir()
    with postgres() as tables:
        given = {"--host": HERE, "--port": port, "--workers": 1, "--allowed-hosts": f"{HERE}:{port}"}
        given |= {"--backend-store-uri": database(tables, "mlflow").replace("postgresql:", "postgresql+psycopg:")}
        given |= {"--artifacts-destination": folder / "artifacts"}
        command = [sys.executable, "-m", *composed("mlflow", given)]
        settings = {**tables.environment, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        up = lambda: answers(f"http://{HERE}:{port}/health")  # noqa: E731
        pages = {**tables.environment, "PREFECT_UI_API_URL": "/api"}
        with (
            prefect_server(folder / "prefect", database(tables, "prefect"), pages) as prefect,
            running(Service("mlflow", command, folder / "mlflow", port, up, settings)) as mlflow,
        ):
            yield Servers(tables, prefect, mlflow)


def address(server: Service) -> str:
    """Where a server's pages are."""
    return f"http://{HERE}:{server.port}"


@dataclass
class Served:
    """`tamis serve` on some files, which reports to a Prefect server."""

    files: Sequence[Path]
    prefect: Service
    limit: int = 2
    seen: set[psutil.Process] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.service = Service(
            "serve",
            [str(TAMIS), "serve", *map(str, self.files), "--limit", str(self.limit)],
            self.files[0].parent,
            0,
            lambda: all(service_url(load(file).workspace) for file in self.files),
            {**PROGRAM, "PREFECT_API_URL": self.api},
        )

    @property
    def api(self) -> str:
        return f"{address(self.prefect)}/api"

    @property
    def log(self) -> str:
        return (self.service.folder / "serve.log").read_text()

    def start(self) -> None:
        self.service.start()

    def until(self, there: Callable[[], Any], what: str) -> None:
        """Wait for something while the service lives, noting the processes below it."""

        def happened() -> bool:
            process = self.service.process
            assert process is not None
            assert process.poll() is None, self.log
            self.seen.update(psutil.Process(process.pid).children(recursive=True))
            return bool(there())

        try:
            wait_for(happened, what, patience=PATIENCE)
        except AssertionError as error:
            error.add_note(self.log[-3000:])
            raise

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        """End the service's own process, and no other; its exit code."""
        process = self.service.process
        assert process is not None
        if process.poll() is None:
            process.send_signal(how)
        return process.wait(PATIENCE)

    def left(self) -> list[str]:
        """Processes that it started and that still live, those given a moment to die included."""
        wait_for(lambda: not any(map(alive, self.seen)), "processes to end", patience=60, strict=False)
        return [command_line(process) for process in self.seen if alive(process)]

    def ask(self, path: str, **body: Any) -> Any:
        """Prefect's own HTTP API."""
        answer = httpx.post(f"{self.api}/{path}", json=body, timeout=60)
        assert answer.is_success, answer.text
        return answer.json()

    def runs(self, file: Path) -> list[dict[str, Any]]:
        """The flow runs of a file that have begun, in order."""
        found = self.ask(
            "flow_runs/filter", deployments={"name": {"any_": [load(file).name]}}, sort="START_TIME_ASC", limit=200
        )
        return [run for run in found if run["start_time"]]

    def begin(self, file: Path, **parameters: Any) -> None:
        """Ask for a run now, as Prefect's page does."""
        found = httpx.get(f"{self.api}/deployments/name/{FLOW}/{load(file).name}", timeout=60)
        self.ask(f"deployments/{found.json()['id']}/create_flow_run", parameters=parameters)

    def under_way(self, file: Path) -> list[str]:
        """The states of its runs that are due or at work."""
        now = {"before_": datetime.now(UTC).isoformat()}
        due = {"state": {"type": {"any_": ["SCHEDULED"]}}, "expected_start_time": now}
        found = [
            self.ask("flow_runs/filter", deployments={"name": {"any_": [load(file).name]}}, flow_runs=wanted)
            for wanted in (due, {"state": {"type": {"any_": ["PENDING", "RUNNING", "CANCELLING"]}}})
        ]
        return [run["state_name"] for runs in found for run in runs]


@contextmanager
def serving(served: Served) -> Iterator[Served]:
    """The service, from its start to its end and that of all it started."""
    try:
        served.start()
        yield served
    finally:
        served.service.kill()
        for process in served.seen:
            if alive(process):
                process.kill()


def state_of(file: Path, cycle: int) -> str:
    """What the ledger says of a cycle; empty before it is opened."""
    ledger = ledger_of(load(file))
    last = ledger.last_cycle() if ledger.exists else None
    return ledger.state(cycle) if last is not None and last.cycle >= cycle else ""


def ended(file: Path, cycle: int) -> bool:
    """Whether a cycle is over."""
    ledger = ledger_of(load(file))
    last = ledger.last_cycle() if ledger.exists else None
    unfinished = ledger.unfinished_cycle() if last else None
    return last is not None and last.cycle >= cycle and (unfinished is None or unfinished.cycle > cycle)
