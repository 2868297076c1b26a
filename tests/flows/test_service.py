"""The rules of a service that need no server: what comes too late, what goes on, who may serve what."""

import asyncio
import fcntl
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from flows.claims import claimed, service_url
from flows.config import load
from flows.errors import BadInput, StageFailed
from flows.sections.service import ServiceConfig
from flows.serving import Extent, serve_files
from tests.flows.desk import Desk, open_desk
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


def test_a_run_that_a_person_was_cancelling_is_cancelled_when_its_service_was_killed() -> None:
    from prefect.states import Cancelling, Running

    from flows.deployments import clear

    prefect, said = Prefect(ended(Cancelling()), ended(Running())), dict[Any, str]()
    prefect.set_flow_run_state = lambda run, state, force: said.update({run: state.type.value})
    known: Any = SimpleNamespace(id=uuid4(), global_concurrency_limit=None)
    clear(prefect, known)
    assert [said[run.id] for run in prefect.runs] == ["CANCELLED", "CRASHED"]


def test_a_watcher_that_broke_ends_the_service() -> None:
    from flows.serving import _until

    async def served() -> None:
        broken = threading.Thread(target=lambda: None)
        broken.stop = lambda: None  # type: ignore[attr-defined]
        broken.start()
        await _until(asyncio.Event(), {}, broken)  # type: ignore[arg-type]

    with pytest.raises(StageFailed, match="the watcher of the reviews broke"):
        asyncio.run(served())


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


def test_a_service_whose_watcher_has_ended_ends_with_a_line_and_one_that_is_stopped_without(tmp_path: Path) -> None:
    from flows.serving import _until
    from flows.watching import Watcher

    class Ended(Watcher):
        def run(self) -> None:
            pass

    async def serve(watcher: Watcher, stopped: bool) -> None:
        stop = asyncio.Event()
        watcher.start()
        if stopped:
            stop.set()
        await _until(stop, {}, watcher)

    class Waiting(Watcher):
        def run(self) -> None:
            self._wake.wait()

    watched = {uuid4(): load(write_toml(tmp_path))}
    with pytest.raises(StageFailed, match="the watcher of reviews ended by an error of its own"):
        asyncio.run(serve(Ended(watched, print), stopped=False))
    asyncio.run(serve(Waiting(watched, print), stopped=True))


@pytest.fixture
def desk(tmp_path: Path, mlflow_store: Path) -> Desk:
    desk = open_desk(tmp_path, mlflow_store)
    desk.review()
    return desk


def test_an_act_asks_for_one_run_until_that_run_has_ended_and_for_none_after_it_was_cancelled(desk: Desk) -> None:
    from prefect.states import Cancelled, Completed

    from flows.watching import acted_on

    waits = ended(Completed())
    assert acted_on(desk.config, [waits]) is None
    desk.act(desk.hash)
    wanted = acted_on(desk.config, [waits])
    assert wanted is not None
    assert wanted.cycle == 1
    assert "approved" in wanted.why
    assert acted_on(desk.config, [waits]) == wanted
    assert acted_on(desk.config, [ended(Cancelled()), waits]) == wanted, "Prefect knows the key, and begins nothing"
    assert acted_on(desk.config, [ended(Completed()), waits]) != wanted


def test_a_killed_run_is_asked_for_again_one_that_failed_or_was_cancelled_by_a_person_is_not(desk: Desk) -> None:
    from prefect.states import Cancelled, Completed, Crashed, Failed

    from flows.watching import SHUT_DOWN, interrupted

    for state in (Crashed(), Cancelled(message=SHUT_DOWN)):
        killed = ended(state)
        wanted = interrupted(desk.config, [killed])
        assert wanted is not None
        assert (wanted.cycle, wanted.key) == (1, f"after {killed.id}")
    for state in (Cancelled(), Failed(), Completed()):
        assert interrupted(desk.config, [ended(state), ended(Crashed())]) is None
    assert interrupted(desk.config, []) is None


def test_a_run_that_failed_is_asked_for_again_so_often_until_another_act(desk: Desk) -> None:
    from prefect.states import Completed, Failed

    from flows.watching import RESTARTS, acted_on

    desk.tag(run=f"approve:{desk.hash[:12]}")
    runs, keys = [ended(Completed())], []
    for place in range(RESTARTS + 3):
        wanted = acted_on(desk.config, runs)
        assert wanted is not None
        keys.append(wanted.key)
        runs = [ended(Failed()), *runs]
        desk.ledger.record_event(1, "failed", key=str(place))
    assert len(set(keys)) == 1 + RESTARTS
    desk.act(desk.hash)
    wanted = acted_on(desk.config, runs)
    assert wanted is not None
    assert wanted.key not in keys


class Prefect:
    """A server that knows these runs, and begins others once under each key."""

    def __init__(self, *runs: Any) -> None:
        self.runs, self.keys = list(runs), list[str]()

    def read_flow_runs(self, flow_run_filter: Any, **_: Any) -> list[Any]:
        return [run for run in self.runs if run.state.type in flow_run_filter.state.type.any_]

    def create_flow_run_from_deployment(self, _: Any, idempotency_key: str, **__: Any) -> Any:
        from prefect.states import Completed, Scheduled

        fresh = idempotency_key not in self.keys
        self.keys.append(idempotency_key)
        return ended(Scheduled() if fresh else Completed())


def look(desk: Desk, prefect: Any) -> list[str]:
    """What a watcher says who looks twice."""
    from flows.watching import Watcher

    said = list[str]()
    deployment = uuid4()
    watcher = Watcher({deployment: desk.config}, said.append)
    for _ in range(2):
        watcher._look(prefect, deployment, desk.config)
    return said


def test_a_run_that_was_killed_while_it_acted_on_a_decision_is_begun_again(desk: Desk) -> None:
    from prefect.states import Completed, Crashed

    waits, killed = ended(Completed()), ended(Crashed())
    desk.act(desk.hash)
    first, again = Prefect(waits), Prefect(killed, waits)
    look(desk, first)
    look(desk, again)
    assert again.keys[0].endswith(f"after {killed.id}")
    assert again.keys[0] not in first.keys


def test_a_cycle_whose_runs_are_killed_is_given_up_in_one_line_but_an_act_begins_it(desk: Desk) -> None:
    from prefect.states import Cancelled, Crashed

    from flows.watching import RESTARTS, SHUT_DOWN

    killed = [ended(Crashed()) for _ in range(RESTARTS + 1)]
    prefect = Prefect(*killed)
    [line] = look(desk, prefect)
    assert line.endswith(f"`tamis trigger {desk.file}` begins one")
    assert prefect.keys == []
    desk.act(desk.hash)
    assert "the proposal was approved" in look(desk, prefect)[0]

    shut_down = Prefect(*(ended(Cancelled(message=SHUT_DOWN)) for _ in killed))
    assert "was killed" in look(desk, shut_down)[0]


def test_a_run_that_was_killed_when_its_cycle_had_ended_is_not_begun_again(desk: Desk) -> None:
    from prefect.states import Crashed

    from flows.watching import interrupted

    desk.ledger.record_event(1, "nothing_to_do")
    assert interrupted(desk.config, [ended(Crashed(), NOW - timedelta(days=9999))]) is None
    later = interrupted(desk.config, [ended(Crashed(), datetime.now(UTC) + timedelta(days=1))])
    assert later is not None, "it was killed before it opened the next"
    assert later.cycle is None
