"""The cycle as a Prefect flow: stages become tasks, progress becomes an artifact, ledger events become Prefect events.

Import this module only after `prefect_environment`: Prefect reads its settings when it is first imported. Without a
`PREFECT_API_URL` of the user's, Prefect runs its own temporary server on this machine, with its database in the
workspace.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast
from uuid import UUID

from prefect import Task, flow, task
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.runtime import deployment
from prefect.states import Completed

from flows.announcements import dismiss
from flows.check import require
from flows.claims import parent_of_run
from flows.config import Config, load
from flows.cycle import run_cycle
from flows.lateness import overtaken
from flows.launch import Progress
from flows.logs import logged
from flows.mirror import EventMirror
from flows.opening import workspace
from flows.progress import progress_shown
from flows.publication import describe
from flows.ranks.lifeline import die_with_parent
from flows.redaction import secrets_in
from flows.server import let_interrupts_in
from flows.stores import ledger_of
from flows.summary import Summary
from storage.errors import LedgerLocked, WriteFailed

P = ParamSpec("P")
R = TypeVar("R")

ARTIFACT_SECONDS = 2.0
TRIED_AGAIN = ("open_cycle", "review", "publish")
"""Stages that lose nothing and decide nothing by being tried again; ranks have attempts of their own."""
SKIPPED, AWAITING = "Skipped", "AwaitingReview"
"""Names of states that Prefect counts as completed."""
RETRIES, RETRY_SECONDS = 2, 10.0


@flow(name="tamis-cycle", validate_parameters=False)
def curate(file: str, dry_run: bool = False, cycle: int | None = None) -> Summary:
    """Continue the unfinished cycle of a tamis.toml, else open the next.

    As a deployment it waits until the workspace is free, and is left out where `[service]` says that it comes too late.

    Args:
        file: The tamis.toml.
        dry_run: Stop at the proposal.
        cycle: Continue this one; left out if it has ended meanwhile.

    Returns:
        The summary; in a state `AwaitingReview` where a person is to decide.
    """
    let_interrupts_in()
    config = load(Path(file))
    if deployment.id is None:
        return _shown(_turn(config, dry_run))
    if (service := parent_of_run()) is not None:
        die_with_parent(service)
    if reason := overtaken(config.service):
        return _left_out(reason)
    secrets = secrets_in(config.model_dump(mode="json", by_alias=True))
    with workspace(config, wait=True), logged(config.workspace, secrets):
        if cycle is not None and not _goes_on(config, cycle):
            return _left_out(f"cycle {cycle} has ended")
        summary = _turn(config, dry_run)
        dismiss(config.workspace)
    return _shown(summary)


def _goes_on(config: Config, cycle: int) -> bool:
    unfinished = ledger_of(config).unfinished_cycle()
    return unfinished is not None and unfinished.cycle == cycle


def _left_out(reason: str) -> Summary:
    return cast(Summary, Completed(name=SKIPPED, message=reason))  # which Prefect takes as the state


def _shown(summary: Summary) -> Summary:
    """What the flow returns, so that its caller gets the summary, and Prefect the state, whose data it is."""
    if summary.state != "awaiting_review":
        return summary
    message = f"Cycle {summary.cycle}: {summary.decision}"
    return cast(Summary, Completed(name=AWAITING, message=message, data=summary))


def _turn(config: Config, dry_run: bool) -> Summary:
    mirror = EventMirror(config)
    mirror()  # what was decided since the last flow
    with progress_shown() as bar:
        artifact = _ProgressArtifact()

        def show(progress: Progress) -> None:
            bar(progress)
            artifact(progress)

        def step(stage: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return _task_of(stage)(lambda: stage(*args, **kwargs))()
            finally:
                mirror()

        try:
            summary = run_cycle(config, require(config), step, show, dry_run=dry_run)
        finally:
            mirror()
    create_markdown_artifact(describe(summary), key="tamis-cycle", description=f"cycle {summary.cycle}")
    create_table_artifact(_counts(summary), key="tamis-proposal", description=f"cycle {summary.cycle}")
    if summary.page:
        create_link_artifact(summary.page, "MLflow: scores, report, review", "tamis-run", f"cycle {summary.cycle}")
    return summary


def _task_of(stage: Callable[..., Any]) -> Callable[[Callable[[], R]], Task[[], R]]:
    """The task that a stage becomes; those that only read and publish are tried again when a store does not answer."""
    name = getattr(stage, "__name__", "stage")
    settings: dict[str, Any] = {"name": name, "cache_policy": NO_CACHE, "persist_result": False}
    if name in TRIED_AGAIN:
        settings |= {"retries": RETRIES, "retry_delay_seconds": RETRY_SECONDS, "retry_condition_fn": _may_pass}
    return lambda call: task(**settings)(call)


def _may_pass(_: object, __: object, state: State[Any]) -> bool:
    error = state.result(raise_on_failure=False)
    return isinstance(error, WriteFailed | LedgerLocked)


def _counts(summary: Summary) -> list[dict[str, Any]]:
    rows = [("scored", summary.points), ("in training", summary.in_train)]
    rows += [(f"candidates, {policy}", count) for policy, count in summary.candidates.items()]
    rows += [(f"proposed to {action}", count) for action, count in summary.actions.items()]
    return [{"points": name, "count": count} for name, count in [*rows, *summary.changed.items()]]


class _ProgressArtifact:
    """One progress artifact per phase, updated now and then."""

    def __init__(self) -> None:
        self._phase, self._last = "", 0.0
        self._id: UUID | Coroutine[Any, Any, UUID] | None = None

    def __call__(self, progress: Progress) -> None:
        share = 100.0 * progress.done / max(1, progress.total)
        now = time.monotonic()
        if progress.phase != self._phase:
            self._phase, self._last = progress.phase, now
            self._id = create_progress_artifact(share, key="tamis-progress", description=progress.phase)
        elif isinstance(self._id, UUID) and (now - self._last >= ARTIFACT_SECONDS or progress.done == progress.total):
            self._last = now
            update_progress_artifact(self._id, share)
