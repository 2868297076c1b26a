"""`tamis serve` as a team meets it: on a real Prefect server, with real cycles, a real cancel and a real kill."""

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from flows.claims import service_url
from flows.config import load
from flows.stores import ledger_of
from tests.faults.harness import ROOT, TAMIS, alive, command_line, wait_for
from tests.flows.helpers import tamis, write_toml

SLOW = f"{Path(__file__).with_name('slow_blobs.py')}:SlowBlobs"
PROCESSES = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]), "COLUMNS": "200"}

pytestmark = pytest.mark.service


@dataclass
class Service:
    """`tamis serve` on some files, with a Prefect server of its own unless the environment names one."""

    files: list[Path]
    limit: int = 2
    seen: set[psutil.Process] = field(default_factory=set)

    def start(self) -> "Service":
        self.log = self.files[0].with_name("serve.log")
        with self.log.open("ab") as log:
            self.process = psutil.Popen(
                [str(TAMIS), "serve", *map(str, self.files), "--limit", str(self.limit), "--port", "0"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | PROCESSES,
                start_new_session=True,
            )
        self.until(lambda: all(service_url(load(file).workspace) for file in self.files), "the service to be there")
        self.api = str(service_url(load(self.files[0]).workspace))
        return self

    def until(self, there: Any, what: str) -> None:
        """Wait for something while the service lives, noting the processes below it."""

        def happened() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            self.seen.update(self.process.children(recursive=True))
            return bool(there())

        wait_for(happened, what, patience=600)

    def left(self) -> list[str]:
        """Processes that it started and that still live, those given a moment to die included."""
        wait_for(lambda: not any(map(alive, self.seen)), "processes to end", patience=20, strict=False)
        return [command_line(process) for process in self.seen if alive(process)]

    def end(self, sign: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(sign)
        return int(self.process.wait(60))

    def ask(self, path: str, **body: Any) -> Any:
        """Prefect's own HTTP API."""
        answer = httpx.post(f"{self.api}/{path}", json=body, timeout=60)
        assert answer.is_success, answer.text
        return answer.json()

    def runs(self, file: Path) -> list[tuple[str, str]]:
        """State and id of each flow run of a file that is no more than due, in the order of their start."""
        name = load(file).name
        wanted = {"deployments": {"name": {"any_": [name]}}, "sort": "START_TIME_ASC"}
        found = self.ask("flow_runs/filter", **wanted)
        return [(run["state_name"], run["id"]) for run in found if run["start_time"]]

    def events(self, cycle: int) -> list[str]:
        """What Prefect was told of a cycle, in order."""
        wanted = {"event": {"prefix": ["tamis.cycle."]}}
        found = self.ask("events/filter", filter=wanted, limit=50)["events"]
        return [event["event"] for event in found[::-1] if event["payload"]["cycle"] == cycle]

    def states(self, file: Path) -> list[str]:
        return [state for state, _ in self.runs(file)]


@pytest.fixture
def services() -> Iterator[list[Service]]:
    started: list[Service] = []
    yield started
    for service in started:
        service.end(signal.SIGKILL)
        for process in service.seen:
            if alive(process):
                process.kill()


def state_of(file: Path) -> str:
    ledger = ledger_of(load(file))
    last = ledger.last_cycle() if ledger.exists else None
    return ledger.state(last.cycle) if last else ""


@pytest.fixture
def told() -> Iterator[tuple[str, list[str]]]:
    """The address of a server that people are told through, and what it was told."""
    texts: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            texts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"])
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", texts
    server.shutdown()
    server.server_close()


def save_block(api: str, url: str) -> None:
    """A notification block of the team's, made as they would in the UI."""
    from prefect.blocks.notifications import CustomWebhookNotificationBlock
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: api}):
        block = CustomWebhookNotificationBlock(
            name="curation", url=url, json_data={"text": "{{body}}"}, allow_private_urls=True
        )
        block.save("curation")


def test_a_due_cycle_waits_for_a_person_and_goes_on_by_itself_to_promotion(
    tmp_path: Path, services: list[Service], told: tuple[str, list[str]]
) -> None:
    url, texts = told
    service_settings = {"every_hours": 0.008, "poll_seconds": 1.0, "notify": ["custom-webhook/curation"]}
    file = write_toml(
        tmp_path, dataset="due", orchestrator="prefect", review={"mode": "manual"}, service=service_settings
    )
    service = Service([file])
    services.append(service.start())
    save_block(service.api, url)
    service.until(lambda: "AwaitingReview" in service.states(file), "the proposal")
    proposal = ledger_of(load(file)).proposal(1)
    assert proposal is not None
    assert tamis("approve", proposal.hash[:12], "--by", "ada", "--file", file).returncode == 0
    steps = ["tamis.cycle.proposed", "tamis.cycle.approved", "tamis.cycle.promoted"]
    service.until(lambda: service.events(1) == steps, "the promotion, and Prefect to know of it")
    service.until(lambda: len(texts) >= 2, "people to be told")
    assert texts[0].startswith(f"due, cycle 1: awaiting review. Proposal {proposal.hash[:12]}: tamis approve")
    assert texts[1].startswith("due, cycle 1: promoted. every bound of the challenger is below its limit")
    assert service.end() == 0
    assert service.left() == []


def test_runs_due_at_once_all_end_a_cancelled_one_leaves_no_rank_and_a_killed_service_goes_on(
    tmp_path: Path, services: list[Service]
) -> None:
    from prefect.events.schemas.events import Event

    shared = {"orchestrator": "prefect", "service": {"poll_seconds": 1.0}}
    slow = write_toml(tmp_path / "slow", SLOW, {"hold": str(tmp_path / "hold")}, dataset="slow", **shared)
    files = [write_toml(tmp_path / name, dataset=name, **shared) for name in ("first", "second")]
    (tmp_path / "hold").touch()
    service = Service([slow, *files], limit=3)
    services.append(service.start())
    for file in (slow, files[0], files[0]):  # two are due in one workspace
        assert tamis("trigger", file).returncode == 0
    changed = Event(event="tamis.data.changed", resource={"prefect.resource.id": "tamis.data.second"})
    assert httpx.post(f"{service.api}/events", json=[changed.model_dump(mode="json")], timeout=60).is_success
    training = slow.parent / "ws" / "cycles" / "000001" / "logs" / "train-rank0.beat"
    service.until(training.exists, "the slow one to train")

    [(state, run)] = service.runs(slow)
    assert state == "Running"
    ranks = [process for process in service.seen if f"{slow.parent}/ws/cycles" in command_line(process)]
    assert ranks
    service.ask(f"flow_runs/{run}/set_state", state={"type": "CANCELLING"})
    service.until(lambda: service.states(slow) == ["Cancelled"], "the cancel")
    assert not any(map(alive, ranks))

    service.until(lambda: service.states(files[0]).count("Completed") == 2, "both of one workspace")
    service.until(lambda: service.states(files[1]) == ["Completed"], "that of the other")
    assert service.states(slow) == ["Cancelled"], "what a person has cancelled is not begun again"
    assert "Failed" not in json.dumps(service.ask("flow_runs/filter", limit=200))

    training.unlink()
    assert tamis("trigger", slow).returncode == 0
    service.until(training.exists, "the slow one to train again")
    service.process.kill()
    service.process.wait()
    assert service.left() == []
    (tmp_path / "hold").unlink()
    again = Service([slow, *files], limit=3)
    services.append(again.start())
    again.until(lambda: state_of(slow) in ("promoted", "rolled_back", "nothing_to_do"), "the cycle to end")
    again.until(lambda: again.states(slow) == ["Cancelled", "Crashed", "Completed"], "its run to end")
    assert again.end(signal.SIGINT) == 0
    assert again.left() == []
