"""The watcher of a service: which runs it begins, and which it does not."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from flows.config import load
from flows.errors import StageFailed
from tests.flows.desk import Desk, open_desk
from tests.flows.helpers import write_toml

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def ended(state: Any, began: datetime = NOW) -> Any:
    from prefect.client.schemas.objects import FlowRun

    return FlowRun(id=uuid4(), flow_id=uuid4(), name="swift-otter", state=state, start_time=began)


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
        await _until(stop, {}, watcher, "http://127.0.0.1:9/api")

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


def test_a_run_that_a_person_was_cancelling_is_cancelled_when_its_service_was_killed() -> None:
    from prefect.states import Cancelling, Running

    from flows.deployments import clear

    prefect, said = Prefect(ended(Cancelling()), ended(Running())), dict[Any, str]()
    prefect.set_flow_run_state = lambda run, state, force: said.update({run: state.type.value})
    known: Any = SimpleNamespace(id=uuid4(), global_concurrency_limit=None)
    clear(prefect, known)
    assert [said[run.id] for run in prefect.runs] == ["CANCELLED", "CRASHED"]
