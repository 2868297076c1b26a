"""How a stage is done once: its result is kept beside the cycle, keyed by the digest of what went into it.

A stage that was killed is run again from its beginning; one that has finished is read back, so that a command repeated
after any crash continues where the work stopped. What a stage writes elsewhere (checkpoints, shards, ledger rows) is
atomic or idempotent by itself.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from flows.agents import Launch
from flows.announcements import announcement
from flows.config import Config
from flows.errors import BadInput, StageFailed
from flows.launch import Progress, run_ranks
from flows.plans import Plan, write_plan
from flows.redaction import hide, secrets_in
from storage.files import JSON, atomic_write_json, read_json, sha256_json
from storage.ledger import Ledger
from storage.points import Manifest, PointId
from storage.tracking import Tracker

R = TypeVar("R")
logger = logging.getLogger("tamis")


@dataclass(frozen=True)
class Cycle:
    """One cycle in progress: where it lives and whom it tells.

    Attributes:
        config: The settings in force.
        number: From 1.
        manifest: The train set as the workload gives it, removed points included.
        removed: Ids removed in earlier cycles.
        dataset_sha256: Of the data set in force: the manifest without the removed ids, with the overridden labels.
        digests: Of the three sets, of the workload's files and of the versions: what a stage's result depends on.
        run: The MLflow run.
        show: Shows progress.
        relabeled: Labels that earlier cycles put in place of the given ones, of points that are not removed.
        moved: What changed in the data since the cycle before, in a line, and what is protected and not there
            any more; empty where nothing did.
    """

    config: Config
    number: int
    manifest: Manifest
    removed: frozenset[PointId]
    dataset_sha256: str
    digests: Mapping[str, str]
    ledger: Ledger
    tracker: Tracker
    run: str
    show: Callable[[Progress], None]
    relabeled: Mapping[PointId, int] = field(default_factory=dict)
    moved: str = ""

    @property
    def folder(self) -> Path:
        """Where everything of this cycle is kept."""
        return cycle_folder(self.config, self.number)

    @property
    def applied(self) -> bool:
        """Whether removals of this cycle stand in the ledger: from then on what led to them is not computed again."""
        return any(event.state == "applied" for event in self.ledger.events(self.number))

    def section(self, *names: str, without: Collection[str] = ()) -> dict[str, JSON]:
        """Sections of the configuration, for a stage's key, without some keys of theirs."""
        dump = self.config.model_dump(mode="json", by_alias=True)
        return {name: {key: value for key, value in dump[name].items() if key not in without} for name in names}

    def launch(self, program: str, plan: Plan, ranks: int) -> Path:
        """Run a rank program on a plan, and again after a fault: it goes on from what it has finished.

        Returns:
            The logs of the attempt that succeeded.

        Raises:
            BadInput: A rank found its input bad, which another attempt would not cure.
            StageFailed: The last attempt failed too.
        """
        attempts = self.config.launch.attempts
        for stale in plan.logs.glob(f"attempt-*/{program}-*"):
            stale.unlink()
        attempt = 1
        while True:
            logs = plan.logs if attempt == 1 else plan.logs / f"attempt-{attempt}"
            path = write_plan(plan.model_copy(update={"logs": logs}), self.folder / "plans" / f"{program}.json")
            try:
                run_ranks(self._launch(program, path, ranks, logs), self.show)
            except StageFailed as error:
                if attempt == attempts:
                    raise
                self.record_failure(str(error), attempt=attempt, attempts=attempts)
                attempt += 1
                self.show(Progress(f"{program}, attempt {attempt} of {attempts}", 0, 1))
            else:
                _log_ranks(program, logs)
                return logs

    def _launch(self, program: str, plan: Path, ranks: int, logs: Path) -> Launch:
        settings = self.config.launch
        launch = Launch(program, plan, ranks, logs, settings.heartbeat_seconds, settings.launcher)
        return replace(launch, announcement=announcement(self.config.workspace)) if launch.nodes > 1 else launch

    def record_failure(self, reason: str, **more: JSON) -> None:
        """Tell the ledger and the MLflow run what failed, without secrets, and whatever else is known of it."""
        reason = hide(reason, secrets_in(self.config.model_dump(mode="json", by_alias=True)))
        self.ledger.record_event(self.number, "failed", detail={"reason": reason, **more}, key=str(time.time_ns()))
        self.tracker.log_failure(self.run, reason)


def _log_ranks(program: str, logs: Path) -> None:
    """What each rank spent."""
    for path in sorted(logs.glob(f"{program}-rank*.json")):
        spent = read_json(path)
        seconds, cpu = (sum(spent[kind].values()) for kind in ("seconds", "cpu_seconds"))
        said = "%s ended after %.1f s, %.1f CPU s, %.0f MB"
        rank = {"rank": int(path.stem.removeprefix(f"{program}-rank"))}
        logger.info(said, program, seconds, cpu, spent["peak_bytes"] / 1e6, extra=rank)


def cycle_folder(config: Config, number: int) -> Path:
    """The folder of a cycle in the workspace."""
    return config.workspace / "cycles" / f"{number:06d}"


def once(
    cycle: Cycle,
    name: str,
    kind: type[R],
    inputs: Mapping[str, JSON],
    work: Callable[[], R],
    *,
    decided: bool = False,
    intact: Callable[[R], bool] = lambda _: True,
) -> R:
    """Do a stage, or read back what it gave for the same inputs.

    Args:
        cycle: The cycle.
        name: Of the stage.
        kind: The frozen dataclass it results in.
        inputs: What the result depends on.
        work: Does it.
        decided: The result led to removals that stand in the ledger: it is kept whatever the inputs are now.
        intact: Whether what the result names is still on disk.
    """
    path = cycle.folder / "stages" / f"{name}.json"
    digest = sha256_json(inputs)
    adapter: TypeAdapter[R] = TypeAdapter(kind)
    if path.exists():
        kept = read_json(path)
        if kept["inputs"] == digest or decided:
            known = _known(adapter, kept["result"], path)
            if intact(known):
                return known
    started = time.time()
    result = work()
    path.parent.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {"inputs": digest, "result": adapter.dump_python(result, mode="json")}
    atomic_write_json(path, record | {"seconds": round(time.time() - started, 3)})
    return result


def _known(adapter: TypeAdapter[R], result: JSON, path: Path) -> R:
    try:
        return adapter.validate_python(result)
    except ValidationError as error:
        raise BadInput(
            f"{path} was written by another version of Tamis, and decisions of this cycle rest on it: end the cycle "
            "with that version (cycle.json beside it names it), then upgrade"
        ) from error
