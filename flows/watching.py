"""The watcher of a service: it begins the runs that nobody's schedule asks for.

A cycle that waits for a person goes on once there is something to go on with (flows/waiting.py), and a cycle whose run
was killed goes on as well. Runs are asked of Prefect under a key, so that one act begins one run however often it is
seen, and a run that somebody cancelled is not begun again by the same act.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import takewhile
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
"""How often in a row a cycle is begun again whose run was killed or failed."""
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


def wanted(config: Config, ended: list[FlowRun]) -> Iterator[Wanted]:
    """What there is to begin, the next one where Prefect has had the one before.

    A killed run comes first: what it was to act on asks under the key that the run itself was begun by.

    Args:
        config: The settings.
        ended: The runs that have ended, newest first.
    """
    for found in (interrupted, acted_on):
        if (one := found(config, ended)) is not None:
            yield one


def acted_on(config: Config, ended: list[FlowRun]) -> Wanted | None:
    """What the open proposal has to go on with; asked for again, but not for ever, where the run for it failed.

    Args:
        config: The settings.
        ended: The runs that have ended, newest first.
    """
    found = pending(config)
    if found is None:
        return None
    newest = [event.seq for event in ledger_of(config).events(found.cycle) if event.state != "failed"][-1]
    since = list(takewhile(lambda run: not _is(run, StateType.COMPLETED), ended))
    seen = str(ended[len(since)].id) if len(since) < len(ended) else ""
    failed = min(RESTARTS, sum(_is(run, StateType.FAILED) for run in since))
    key = f"{newest} {found.reason} {seen} {failed}"
    return Wanted(key, f"cycle {found.cycle}: {SAID[found.reason]}", found.cycle)


def interrupted(config: Config, ended: list[FlowRun]) -> Wanted | None:
    """What the newest run left undone, if it was killed.

    Args:
        config: The settings.
        ended: The runs that have ended, newest first.
    """
    if not ended or not _killed(ended[0]) or worn_out(ended):
        return None
    ledger = ledger_of(config)
    cycle = ledger.unfinished_cycle() if ledger.exists else None
    if cycle is None and ledger.exists and ledger.log(limit=1)[0].event_at.replace(tzinfo=UTC) > _began(ended[0]):
        return None  # it was killed when all was done
    return Wanted(f"after {ended[0].id}", f"run {ended[0].name!r} was killed", cycle.cycle if cycle else None)


def _began(run: FlowRun) -> datetime:
    return run.start_time or datetime.max.replace(tzinfo=UTC)


def worn_out(ended: list[FlowRun]) -> bool:
    """Whether one run after the other was killed, those aside that ended with the service."""
    return sum(_is(run, StateType.CRASHED) for run in takewhile(_killed, ended)) > RESTARTS


def _killed(run: FlowRun) -> bool:
    shut_down = _is(run, StateType.CANCELLED) and run.state is not None and run.state.message == SHUT_DOWN
    return _is(run, StateType.CRASHED) or shut_down


def _is(run: FlowRun, kind: StateType) -> bool:
    return run.state is not None and run.state.type == kind


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
        self._told = set[str]()

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
        for one in wanted(config, ended):
            parameters = {} if one.cycle is None else {"cycle": one.cycle}
            key = f"tamis {deployment} {one.key}"
            run = client.create_flow_run_from_deployment(deployment, parameters=parameters, idempotency_key=key)
            if run.state is not None and run.state.is_scheduled():
                self._say_once(key, f"{config.name}: {one.why}; run {run.name!r} goes on")
                return
        if worn_out(ended):
            gave_up = f"its last {RESTARTS + 1} runs were killed, {ended[0].name!r} is not begun again"
            self._say_once(f"{ended[0].id}", f"{config.name}: {gave_up}; `tamis trigger {config.file}` begins one")

    def _say_once(self, key: str, line: str) -> None:
        if key not in self._told:
            self._told.add(key)
            self._say(line)
