"""What Prefect is told of a tamis.toml: its deployment, with schedule and trigger, and the runs that are asked of it.

Import this module only after `prefect_environment` or `service_environment`: Prefect reads its settings when it is
first imported.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentUpdate, GlobalConcurrencyLimitUpdate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId, FlowRunFilter
from prefect.client.schemas.objects import ConcurrencyLimitConfig, FlowRun, State, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.sorting import FlowRunSort
from prefect.deployments.runner import RunnerDeployment
from prefect.events import DeploymentEventTrigger
from prefect.exceptions import ObjectNotFound
from prefect.schedules import Cron, Interval, Schedule
from prefect.states import Cancelled, Crashed
from prefect.types.entrypoint import EntrypointType

from flows.approval import approve
from flows.config import Config
from flows.errors import BadInput
from flows.orchestration import curate

FLOW = "tamis-cycle"
DATA_CHANGED = "tamis.data.changed"
"""The event of the resource `tamis.data.NAME` that begins a cycle."""
ANCHOR = datetime(2024, 1, 1)
"""What intervals count from: a fixed moment, or every new start of the service would move them."""
LEFT = "The service that ran it was killed."
UNDER_WAY = (StateType.PENDING, StateType.RUNNING, StateType.CANCELLING)


def schedule_of(config: Config, active: bool = True) -> Schedule | None:
    """When the cycles of a tamis.toml are due.

    Args:
        config: The settings.
        active: Whether they are to begin when they are due.

    Raises:
        BadInput: It is no schedule.
    """
    service = config.service
    try:
        if service.cron is not None:
            return Cron(service.cron, timezone=service.timezone, active=active)
        if service.every_hours is not None:
            every = timedelta(hours=service.every_hours)
            return Interval(every, anchor_date=ANCHOR, timezone=service.timezone, active=active)
    except ValueError as error:
        raise BadInput(f"{config.file}: service.cron = {service.cron!r} is no schedule; e.g. '0 3 * * *'") from error
    return None


def deployment_of(config: Config, known: DeploymentResponse | None) -> RunnerDeployment:
    """The deployment of a tamis.toml; what was paused stays so.

    Args:
        config: The settings.
        known: The deployment as Prefect has it.
    """
    active = known is None or all(schedule.active for schedule in known.schedules)
    schedule = schedule_of(config, active)
    changed = DeploymentEventTrigger(
        name=f"{config.name}: data changed",
        expect={DATA_CHANGED},
        match={"prefect.resource.id": f"tamis.data.{config.name}"},
    )
    return RunnerDeployment.from_flow(
        curate,
        config.name,
        schedules=[schedule] if schedule else [],
        paused=known is not None and known.paused,
        concurrency_limit=ConcurrencyLimitConfig(limit=1),
        parameters={"file": str(config.file)},
        triggers=[changed],
        description=f"Cycles of {config.name}, in {config.workspace}.",
        entrypoint_type=EntrypointType.MODULE_PATH,
    )


async def apply_to_pool(deployment: RunnerDeployment, known: DeploymentResponse | None, pool: str) -> UUID:
    """Have a pool run a deployment; of one that is there, only what `[service]` says is written.

    Its job variables, pull steps and the like are of whoever deployed it.

    Args:
        deployment: As `deployment_of` gives it.
        known: As Prefect has it.
        pool: Its name.
    """
    if known is None or known.work_pool_name != pool:
        return await deployment.aapply(work_pool_name=pool)
    said = deployment.model_dump(mode="json", include={"paused", "schedules"})
    owned = f"prefect.deployment.{known.id}"
    async with get_client() as client:
        await client.update_deployment(known.id, DeploymentUpdate.model_validate(said))
        await client.delete_resource_owned_automations(owned)
        for trigger in deployment.triggers:
            trigger.set_deployment_id(known.id)
            await client.create_automation(trigger.as_automation())
    return known.id


def form_of(config: Config) -> RunnerDeployment:
    """The form in which a reviewer of a tamis.toml decides."""
    return RunnerDeployment.from_flow(
        approve,
        f"approve-{config.name}",
        parameters={"file": str(config.file)},
        description=f"Approve or reject the open proposal of {config.name}.",
        entrypoint_type=EntrypointType.MODULE_PATH,
    )


def known_deployment(client: SyncPrefectClient, config: Config) -> DeploymentResponse | None:
    """The deployment of a tamis.toml as Prefect has it.

    Raises:
        BadInput: Another file's deployment has its name.
    """
    name = f"{FLOW}/{config.name}"
    try:
        known = client.read_deployment_by_name(name)
    except ObjectNotFound:
        return None
    file = known.parameters.get("file")
    if file != str(config.file):
        raise BadInput(
            f"deployment {name!r} is that of {file}: give `dataset` another name in {config.file}, or delete the old "
            f"one with `prefect deployment delete {name}`"
        )
    return known


def check_pool(client: SyncPrefectClient, pool: str) -> None:
    """Check that there is a work pool.

    Raises:
        BadInput: There is none of that name.
    """
    try:
        client.read_work_pool(pool)
    except ObjectNotFound:
        raise BadInput(f"--pool {pool}: no such work pool; `prefect work-pool create {pool} --type process`") from None


def clear(client: SyncPrefectClient, known: DeploymentResponse) -> None:
    """Say of runs that a killed service left how they ended, and free what they held; nothing of it lives."""
    for run in runs_of(client, known.id, *UNDER_WAY):
        asked = run.state is not None and run.state.is_cancelling()
        left: State[Any] = Cancelled(message=LEFT) if asked else Crashed(message=LEFT)
        client.set_flow_run_state(run.id, left, force=True)
    if known.global_concurrency_limit is not None:
        name = known.global_concurrency_limit.name
        client.update_global_concurrency_limit(name, GlobalConcurrencyLimitUpdate(active_slots=0))


def runs_of(client: SyncPrefectClient, deployment: UUID, *types: StateType, due: bool = False) -> list[FlowRun]:
    """Runs of a deployment whose state is of one of some types, or only those due; what ended last first."""
    wanted: dict[str, object] = {"state": {"type": {"any_": list(types)}}}
    if due:
        wanted["next_scheduled_start_time"] = {"before_": datetime.now(UTC)}
    return client.read_flow_runs(
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment])),
        flow_run_filter=FlowRunFilter.model_validate(wanted),
        sort=FlowRunSort.END_TIME_DESC,
    )


def schedule_said(config: Config) -> str:
    """The schedule, for people."""
    service = config.service
    if service.cron is not None:
        return f"cron {service.cron!r} ({service.timezone})"
    return "no schedule" if service.every_hours is None else f"every {service.every_hours:g} h"
