"""The cycle as a Prefect flow, on a real server of the session's."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from flows.config import load
from flows.errors import BadInput
from flows.stores import ledger_of
from tests.flows.helpers import write_toml

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def emitted(prefect_server: None, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """The events that a flow sends, in order."""
    sent: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr("flows.mirror.emit_event", lambda event, resource, payload, id: sent.append((event, payload)))
    return sent


def newest_flow_run() -> tuple[Any, list[str]]:
    """The newest flow run and the names of its tasks in the order of their start."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
    from prefect.client.schemas.sorting import FlowRunSort

    async def read() -> tuple[Any, list[str]]:
        async with get_client() as client:
            [run] = await client.read_flow_runs(limit=1, sort=FlowRunSort.START_TIME_DESC)
            tasks = await client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])))
            return run, [task.name.rsplit("-", 1)[0] for task in sorted(tasks, key=lambda task: str(task.start_time))]

    return asyncio.run(read())


def test_the_flow_runs_its_stages_as_tasks_sends_the_ledgers_events_and_leaves_an_artifact(
    here: Path, emitted: list[tuple[str, dict[str, Any]]]
) -> None:
    from prefect.artifacts import Artifact

    from flows.orchestration import curate

    file = write_toml(here)
    summary = curate(str(file))
    assert summary.state == "promoted"
    run, tasks = newest_flow_run()
    assert run.name
    assert run.state_name == "Completed"
    order = ["open_cycle", "train", "score", "propose", "review", "apply", "retrain", "judge", "conclude"]
    assert [task for task in tasks if task in order] == order
    assert [event for event, _ in emitted] == ["tamis.cycle.proposed", "tamis.cycle.approved", "tamis.cycle.promoted"]
    assert all(payload["cycle"] == 1 for _, payload in emitted)
    artifact = Artifact.get("tamis-cycle")
    assert artifact is not None
    assert "Cycle 1: promoted" in str(artifact.data)


def test_a_flow_whose_stage_breaks_fails_with_its_error_and_sends_it(
    here: Path, emitted: list[tuple[str, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.orchestration import curate

    def refuse(*_: object) -> None:
        raise BadInput("not like this")

    file = write_toml(here)
    monkeypatch.setattr("flows.pruning.select", refuse)
    with pytest.raises(BadInput, match="not like this"):
        curate(str(file))
    assert newest_flow_run()[0].state_name == "Failed"
    assert [event for event, _ in emitted] == ["tamis.cycle.failed"]
    assert "not like this" in emitted[0][1]["reason"]
    assert ledger_of(load(file)).state(1) == "failed"


def test_the_installed_fastapi_serves_prefects_api() -> None:
    """Newer ones answer 500 to a body whose optional keys are null, and no flow can run."""
    import httpx
    from prefect.settings import PREFECT_API_URL

    url = PREFECT_API_URL.value()
    assert url is not None
    for body in ({}, {"limit": None, "sort": None}, {"limit": None, "flow_runs": None}):
        answer = httpx.post(f"{url}/flow_runs/filter", json=body, timeout=60)
        assert answer.status_code == 200, answer.text[:300]
        assert isinstance(answer.json(), list)
