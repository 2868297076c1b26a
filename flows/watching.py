"""The watcher of a service: it begins the runs that nobody's schedule asks for.

A cycle that waits for a person goes on once there is something to go on with (flows/waiting.py), and a cycle whose run
was killed goes on as well. Runs are asked of Prefect under a key, so that one act begins one run however often it is
seen, and a run that somebody cancelled is not begun again by the same act.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import PrefectException

from flows.config import Config
from flows.deployments import UNDER_WAY, runs_of
from flows.errors import BadInput
from flows.orchestration import SKIPPED
from flows.stores import ledger_of
from flows.waiting import Reason, pending
from storage.errors import StorageError

ENDED = (StateType.COMPLETED, StateType.FAILED, StateType.CRASHED, StateType.CANCELLED)
SHUT_DOWN = "Runner is shutting down."
"""What Prefect's runner says of a run that it cancels because the service ends."""
RESTARTS = 3
"""How often in a row a cycle is begun again whose run was killed."""
HINDERING = (BadInput, StorageError, OSError, PrefectException, httpx.HTTPError)
SAID: dict[Reason, str] = {
    "approved": "the proposal was approved",
    "rejected": "the proposal was rejected",
    "tag": "there is a tag to be read",
    "expired": "the proposal has expired",
    "second": "a second person is to see it",
    "reminder": "a reminder is due",
}


@dataclass(frozen=True)
class Wanted:
    """A run to begin: `key` is the same whenever the same thing asks for it; it continues `cycle`, if that is known."""

    key: str
    why: str
    cycle: int | None


def acted_on(config: Config, ended: list[FlowRun]) -> Wanted | None:
    """What the open proposal has to go on with.

    Args:
        config: The settings.
        ended: The runs that have ended, newest first.
    """
    found = pending(config)
    if found is None:
        return None
    [newest] = ledger_of(config).log(limit=1)
    seen = next((str(run.id) for run in ended if run.state is not None and run.state.is_completed()), "")
    return Wanted(f"{newest.seq} {found.reason} {seen}", f"cycle {found.cycle}: {SAID[found.reason]}", found.cycle)


def interrupted(config: Config, ended: list[FlowRun]) -> Wanted | None:
    """What the newest run left undone, if it was killed.

    Args:
        config: The settings.
        ended: The runs that have ended, newest first.
    """
    if not ended or not _killed(ended[0]):
        return None
    ledger = ledger_of(config)
    cycle = ledger.unfinished_cycle() if ledger.exists else None
    if cycle is None and ledger.exists and ledger.log(limit=1)[0].event_at.replace(tzinfo=UTC) > _began(ended[0]):
        return None  # it was killed when all was done
    return Wanted(f"after {ended[0].id}", f"run {ended[0].name!r} was killed", cycle.cycle if cycle else None)


def _began(run: FlowRun) -> datetime:
    return run.start_time or datetime.max.replace(tzinfo=UTC)


def _killed(run: FlowRun) -> bool:
    state = run.state
    return state is not None and (state.is_crashed() or (state.is_cancelled() and state.message == SHUT_DOWN))


class Watcher(threading.Thread):
    """Looks again and again until it is stopped.

    Args:
        watched: The id of each file's deployment.
        say: Is told what was begun, and what hinders it.
    """

    def __init__(self, watched: Mapping[UUID, Config], say: Callable[[str], None]) -> None:
        super().__init__(name="watcher", daemon=True)
        self._watched, self._say = watched, say
        self._seconds = min(config.service.poll_seconds for config in watched.values())
        self._wake, self._over = threading.Event(), False
        self._said: dict[UUID, str] = {}
        self._begun = set[str]()

    def wake(self) -> None:
        """Look now."""
        self._wake.set()

    def stop(self) -> None:
        """Look no more, and wait until it is so."""
        self._over = True
        self._wake.set()
        self.join()

    def run(self) -> None:
        """Look until stopped."""
        with get_client(sync_client=True) as client:
            while not self._over:
                for deployment, config in self._watched.items():
                    self._look(client, deployment, config)
                self._wake.wait(self._seconds)
                self._wake.clear()

    def _look(self, client: SyncPrefectClient, deployment: UUID, config: Config) -> None:
        try:
            self._begin(client, deployment, config)
            said = ""
        except HINDERING as error:  # the next look may succeed
            said = " ".join(str(error).split())
        if said != self._said.get(deployment, ""):
            self._said[deployment] = said
            self._say(f"{config.name}: {said or 'answers again'}")

    def _begin(self, client: SyncPrefectClient, deployment: UUID, config: Config) -> None:
        if runs_of(client, deployment, *UNDER_WAY) or runs_of(client, deployment, StateType.SCHEDULED, due=True):
            return  # which does what there is to do
        ended = [run for run in runs_of(client, deployment, *ENDED) if run.state_name != SKIPPED]
        if len(ended) > RESTARTS and all(_killed(run) for run in ended[: RESTARTS + 1]):
            return
        wanted = acted_on(config, ended) or interrupted(config, ended)
        if wanted is None:
            return
        parameters = {} if wanted.cycle is None else {"cycle": wanted.cycle}
        key = f"tamis {deployment} {wanted.key}"
        run = client.create_flow_run_from_deployment(deployment, parameters=parameters, idempotency_key=key)
        if key not in self._begun and run.state is not None and run.state.is_scheduled():
            self._begun.add(key)
            self._say(f"{config.name}: {wanted.why}; run {run.name!r} goes on")
