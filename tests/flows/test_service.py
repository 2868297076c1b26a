"""The rules of a service that need no server: what comes too late, what goes on, who may serve what."""

import asyncio
import fcntl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from flows.claims import claimed, service_url
from flows.config import load
from flows.errors import BadInput
from flows.sections.service import ServiceConfig
from flows.serving import Extent, serve_files
from tests.flows.helpers import tamis, write_toml

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def run(minutes_ago: float, *, scheduled: bool = True) -> Any:
    """A run of a deployment that was due so long ago."""
    from prefect.client.schemas.objects import FlowRun

    due = NOW - timedelta(minutes=minutes_ago)
    return FlowRun(id=uuid4(), flow_id=uuid4(), auto_scheduled=scheduled, expected_start_time=due)


def ended(state: Any, began: datetime = NOW) -> Any:
    from prefect.client.schemas.objects import FlowRun

    return FlowRun(id=uuid4(), flow_id=uuid4(), name="swift-otter", state=state, start_time=began)


@pytest.mark.parametrize(
    ("late", "due", "others", "left_out"),
    [
        ("run_once", 59, [], False),
        ("skip", 59, [30], False),  # in time, whatever waits behind it
        ("run_once", 61, [], False),
        ("skip", 61, [], True),
        ("run_once", 61, [30], True),
        ("run_once", 61, [90], False),  # the other one is older
        ("run_once", 61, [-30], False),  # the other one is not due yet
    ],
)
def test_a_due_cycle_that_begins_late_is_run_once_or_not_at_all(
    late: Any, due: float, others: list[float], left_out: bool
) -> None:
    from flows.lateness import left_out as reason

    said = reason(ServiceConfig(late=late, late_minutes=60), run(due), [run(other) for other in others], NOW)
    assert bool(said) is left_out
    if left_out:
        assert "2026-03-01 10:59 UTC, 61 minutes ago" in said


def test_what_a_person_asked_for_is_run_however_late() -> None:
    from flows.lateness import left_out

    asked = run(6000, scheduled=False)
    assert left_out(ServiceConfig(late="skip"), asked, [run(1)], NOW) == ""


def test_intervals_are_counted_from_a_fixed_moment_so_that_a_restart_does_not_move_them(tmp_path: Path) -> None:
    from flows.deployments import schedule_of

    file = write_toml(tmp_path, service={"every_hours": 24, "timezone": "Europe/Lisbon"})
    first, again = schedule_of(load(file)), schedule_of(load(file))
    assert first is not None
    assert first == again
    assert first.interval == timedelta(days=1)
    assert first.anchor_date == datetime(2024, 1, 1)
    assert first.timezone == "Europe/Lisbon"


def test_a_cron_that_is_none_is_refused_with_the_key(tmp_path: Path) -> None:
    from flows.deployments import schedule_of

    with pytest.raises(BadInput, match=r"service\.cron = '61 3 \* \* \*' is no schedule"):
        schedule_of(load(write_toml(tmp_path, service={"cron": "61 3 * * *"})))


@pytest.mark.parametrize(("paused", "active"), [(True, True), (False, False), (False, True)])
def test_what_a_person_has_paused_stays_paused_when_the_service_is_started_again(
    tmp_path: Path, paused: bool, active: bool
) -> None:
    from flows.deployments import deployment_of

    known: Any = SimpleNamespace(paused=paused, schedules=[SimpleNamespace(active=active)])
    deployment = deployment_of(load(write_toml(tmp_path, service={"every_hours": 6})), known)
    assert deployment.paused is paused
    assert [schedule.active for schedule in deployment.schedules or []] == [active]


def test_a_workspace_is_served_by_one_process_which_says_where_its_server_is(tmp_path: Path) -> None:
    with claimed(tmp_path) as claim:
        claim.announce("http://127.0.0.1:4200/api")
        assert service_url(tmp_path) == "http://127.0.0.1:4200/api"
        with pytest.raises(BadInput, match=r"process \d+ serves it; end it first"), claimed(tmp_path):
            pass
    assert service_url(tmp_path) is None
    with claimed(tmp_path):
        pass


def test_a_workspace_that_somebody_only_looks_at_can_be_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "service.json").open("w") as look:
        fcntl.flock(look, fcntl.LOCK_SH)
        monkeypatch.setattr("flows.holding.time.sleep", lambda _: fcntl.flock(look, fcntl.LOCK_UN))
        with claimed(tmp_path):
            pass


class Answers:
    """A Prefect server that keeps what it is asked to write."""

    def __init__(self) -> None:
        self.asked = list[tuple[str, Any]]()

    async def __aenter__(self) -> Any:
        return self

    async def __aexit__(self, *_: object) -> None: ...

    async def update_deployment(self, _: Any, deployment: Any) -> None:
        self.asked.append(("update", deployment.model_dump(exclude_unset=True)))

    async def delete_resource_owned_automations(self, owner: str) -> None:
        self.asked.append(("delete", owner))

    async def create_automation(self, automation: Any) -> None:
        self.asked.append(("create", automation.name))


def test_a_service_of_a_pool_leaves_what_was_deployed_but_for_its_schedule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.deployments import apply_to_pool, deployment_of

    server = Answers()
    monkeypatch.setattr("flows.deployments.get_client", lambda: server)
    deployed: Any = SimpleNamespace(id=uuid4(), work_pool_name="pods", paused=True, schedules=[])
    wanted = deployment_of(load(write_toml(tmp_path, service={"every_hours": 6})), deployed)
    assert asyncio.run(apply_to_pool(wanted, deployed, "pods")) == deployed.id
    (_, update), *others = server.asked
    assert update.keys() == {"paused", "schedules"}
    assert update["paused"] is True
    assert update["schedules"][0]["schedule"]["interval"] == timedelta(hours=6)
    assert others == [("delete", f"prefect.deployment.{deployed.id}"), ("create", f"{wanted.name}: data changed")]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ([{"dataset": "a"}, {"dataset": "a"}], "dataset 'a' is that of several files"),
        (
            [{"dataset": "a", "workspace": "../ws"}, {"dataset": "b", "workspace": "../ws"}],
            "ws' is that of several files",
        ),
        ([{"dataset": "a", "orchestrator": "none"}], 'orchestrator = "none" has no service'),
    ],
)
def test_files_that_cannot_be_served_together_are_refused_before_anything_is_started(
    tmp_path: Path, settings: list[dict[str, Any]], said: str
) -> None:
    given = [{"orchestrator": "prefect", **top} for top in settings]
    files = [write_toml(tmp_path / str(place), **top) for place, top in enumerate(given)]
    with pytest.raises(BadInput, match=said):
        serve_files(files, Extent(), port=0)
    assert not list(tmp_path.rglob("service.json"))


def test_a_prefect_server_that_does_not_answer_ends_the_service_in_one_line(tmp_path: Path) -> None:
    file = write_toml(tmp_path, orchestrator="prefect")
    done = tamis("serve", file, PREFECT_API_URL="http://127.0.0.1:9/api", PREFECT_CLIENT_MAX_RETRIES="0")
    assert done.returncode == 1
    assert done.stderr == (
        "tamis: Prefect's server at http://127.0.0.1:9/api does not answer; once it does, `tamis serve` goes on with "
        "what was at work\n"
    )


@pytest.mark.parametrize(
    ("webhooks", "secret", "said"),
    [
        ("4201", "s", "give HOST:PORT"),
        ("here:99999", "s", "give HOST:PORT"),
        ("here:\u00b2", "s", "give HOST:PORT"),
        ("127.0.0.1:4201", "", "--webhooks needs TAMIS_WEBHOOK_SECRET"),
    ],
)
def test_webhooks_take_a_place_and_a_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, webhooks: str, secret: str, said: str
) -> None:
    monkeypatch.setenv("TAMIS_WEBHOOK_SECRET", secret)
    with pytest.raises(BadInput, match=said):
        serve_files([write_toml(tmp_path, orchestrator="prefect")], Extent(webhooks=webhooks), port=0)


def test_a_trigger_without_a_service_names_the_remedy(tmp_path: Path) -> None:
    file = write_toml(tmp_path, orchestrator="prefect")
    done = tamis("trigger", file, PREFECT_API_URL="")
    assert done.returncode == 2
    assert done.stderr == f"tamis: nobody serves {file}: start `tamis serve {file}`, or set PREFECT_API_URL\n"
