"""The cycle as a Prefect flow: stages become tasks, progress becomes an artifact, ledger events become Prefect events.

Import this module only after `prefect_environment`: Prefect reads its settings when it is first imported. Without a
`PREFECT_API_URL` of the user's, Prefect runs its own temporary server on this machine, with its database in the
workspace.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from uuid import UUID

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event

from flows.check import require
from flows.config import Config, load
from flows.cycle import run_cycle
from flows.launch import Progress
from flows.progress import progress_shown
from flows.publication import describe
from flows.server import let_interrupts_in
from flows.stores import ledger_of
from flows.summary import Summary

P = ParamSpec("P")
R = TypeVar("R")

ARTIFACT_SECONDS = 2.0
EVENTS = ("proposed", "approved", "rejected", "promoted", "rolled_back", "nothing_to_do", "failed")


@flow(name="tamis-cycle", validate_parameters=False)
def curate(file: str, dry_run: bool = False) -> Summary:
    """Continue the unfinished cycle of a tamis.toml, else open the next.

    Args:
        file: The tamis.toml.
        dry_run: Stop at the proposal.
    """
    let_interrupts_in()
    config = load(Path(file))
    mirror = _EventMirror(config)
    with progress_shown() as bar:
        artifact = _ProgressArtifact()

        def show(progress: Progress) -> None:
            bar(progress)
            artifact(progress)

        def step(stage: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
            try:
                name = getattr(stage, "__name__", "stage")
                return task(name=name, cache_policy=NO_CACHE, persist_result=False)(lambda: stage(*args, **kwargs))()
            finally:
                mirror()

        try:
            summary = run_cycle(config, require(config), step, show, dry_run=dry_run)
        finally:
            mirror()
    create_markdown_artifact(describe(summary), key="tamis-cycle", description=f"cycle {summary.cycle}")
    return summary


class _EventMirror:
    """Emits what has entered the ledger since the flow began."""

    def __init__(self, config: Config) -> None:
        self._ledger, self._name = ledger_of(config), config.name
        self._seen = self._newest()

    def __call__(self) -> None:
        if not self._ledger.exists:
            return
        fresh = [event for event in self._ledger.log(limit=100) if event.seq > self._seen]
        for event in reversed(fresh):
            self._seen = event.seq
            if event.state in EVENTS and "attempt" not in event.detail:  # which another attempt follows
                resource = {"prefect.resource.id": f"tamis.cycle.{self._name}.{event.cycle}"}
                payload = {"cycle": event.cycle, "actor": event.actor, **event.detail}
                emit_event(f"tamis.cycle.{event.state}", resource=resource, payload=payload)

    def _newest(self) -> int:
        log = self._ledger.log(limit=1) if self._ledger.exists else ()
        return log[0].seq if log else 0


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
