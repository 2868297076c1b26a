"""Events of the ledger as Prefect events and notifications, each told once, also what no flow recorded.

    <workspace>/prefect/told.json   {"seq"}: up to where the ledger has been told

A decision taken on the command line is told by the flow that acts on it. A flow that is killed between telling and
noting it tells again, under the same event id, by which Prefect knows it.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from prefect import task
from prefect.blocks.core import Block
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event

from flows.config import Config
from flows.stores import ledger_of
from storage.errors import StorageError
from storage.files import atomic_write_json, read_json
from storage.records import EventRecord

REVIEW_EVENTS = ("proposed", "approved", "rejected", "endorsed", "superseded", "reminded", "expired")
EVENTS = (*REVIEW_EVENTS, "promoted", "rolled_back", "nothing_to_do", "failed")
NOTIFIED = ("awaiting_review", "reminded", "promoted", "failed")
logger = logging.getLogger("tamis")


class EventMirror:
    """Tells Prefect what has entered the ledger since it was told last."""

    def __init__(self, config: Config) -> None:
        self._config, self._ledger = config, ledger_of(config)
        self._note = config.workspace / "prefect" / "told.json"
        if not self._note.exists():  # what happened before Prefect was asked to watch is no news
            newest = self._ledger.log(limit=1) if self._ledger.exists else ()
            self._told(newest[0].seq if newest else 0)

    def __call__(self) -> None:
        """Tell what is new; what cannot be told now is told by the next call."""
        try:
            self._tell_new()
        except (StorageError, OSError) as error:  # a stage is not undone by it
            logger.warning("events were not told to Prefect: %s", error)

    def _tell_new(self) -> None:
        if not self._ledger.exists:
            return
        for event in self._ledger.since(int(read_json(self._note)["seq"])):
            again = event.state == "expired" and not event.key  # of the cycle, after that of its proposal
            if not again and "attempt" not in event.detail:  # which another attempt follows
                self._tell(event)
            self._told(event.seq)

    def _told(self, seq: int) -> None:
        atomic_write_json(self._note, {"seq": seq})

    def _tell(self, event: EventRecord) -> None:
        name = self._config.name
        if event.state == "judged" and event.detail.get("by") and event.detail["promoted"]:  # `tamis retrain`
            event = replace(event, state="promoted")
        if event.state in EVENTS:
            resource = {"prefect.resource.id": f"tamis.cycle.{name}.{event.cycle}"}
            payload = {"cycle": event.cycle, "actor": event.actor, **event.detail}
            identity = uuid5(NAMESPACE_URL, f"{self._ledger.path}#{event.seq}")
            emit_event(f"tamis.cycle.{event.state}", resource=resource, payload=payload, id=identity)
        if event.state in NOTIFIED:
            subject = f"{name}, cycle {event.cycle}: {event.state.replace('_', ' ')}"
            for block in self._config.service.notify:
                notify(block, subject, f"{subject}. {self._said(event)}", return_state=True)

    def _said(self, event: EventRecord) -> str:
        if event.state not in ("awaiting_review", "reminded"):
            return str(event.detail.get("reason", ""))
        proposal = event.key[:12]
        return f"Proposal {proposal}: tamis approve {proposal} --by NAME --file {self._config.file}, or tamis reject"


@task(retries=2, retry_delay_seconds=5, cache_policy=NO_CACHE, persist_result=False)
def notify(block: str, subject: str, body: str) -> None:
    """Tell the people behind a notification block; where that fails, the task is failed and the cycle goes on.

    Args:
        block: TYPE/NAME.
        subject: Of a mail.
        body: The text.
    """
    told: Any = Block.load(block)
    with told.raise_on_failure():  # Slack's and its like would say nothing
        told.notify(body=body, subject=subject)
