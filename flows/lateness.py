"""What becomes of a due cycle that begins late: it was queued behind another, or nobody was there to begin it.

The rule is applied by the flow itself, so that it holds under `tamis serve` and under every kind of worker alike.
"""

from __future__ import annotations

from datetime import UTC, datetime

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId, FlowRunFilter
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.runtime import flow_run

from flows.sections.service import ServiceConfig


def overtaken(service: ServiceConfig) -> str:
    """Why the flow run that this process is in is left out; empty if it is to be run."""
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(flow_run.id)
        deployment = DeploymentFilter(id=DeploymentFilterId(any_=[run.deployment_id] if run.deployment_id else []))
        waiting = FlowRunFilter.model_validate({"state": {"type": {"any_": [StateType.SCHEDULED]}}})
        others = client.read_flow_runs(deployment_filter=deployment, flow_run_filter=waiting)
    return left_out(service, run, others, datetime.now(UTC))


def left_out(service: ServiceConfig, run: FlowRun, others: list[FlowRun], now: datetime) -> str:
    """Apply `late` and `late_minutes`.

    Args:
        service: The rule.
        run: The one that is about to begin.
        others: Of the same deployment, that have not begun.
        now: The time.

    Returns:
        Why it is left out; empty if it is to be run. What a person or an event asked for is always run.
    """
    due = run.expected_start_time
    if not run.auto_scheduled or due is None:
        return ""
    minutes = (now - due).total_seconds() / 60
    if minutes <= service.late_minutes:
        return ""
    late = f"due at {due:%Y-%m-%d %H:%M} UTC, {minutes:,.0f} minutes ago"
    if service.late == "skip":
        return f"{late}: service.late = 'skip'"
    newer = [other for other in others if other.auto_scheduled and _between(due, other.expected_start_time, now)]
    return f"{late}, and {len(newer)} newer ones are due: the newest is run" if newer else ""


def _between(after: datetime, when: datetime | None, until: datetime) -> bool:
    return when is not None and after < when <= until
