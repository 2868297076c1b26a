"""The stage `open`: which cycle is next, on which data, in which workspace; one process at a time."""

from __future__ import annotations

import fcntl
import hashlib
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version

from flows.config import Config
from flows.dataset import read_sets
from flows.errors import BadInput
from flows.launch import Progress
from flows.stages import Cycle, cycle_folder
from flows.workload import Workload
from storage.errors import StorageError
from storage.files import JSON, atomic_write_json, sha256_json
from storage.ledger import Ledger
from storage.points import Manifest, dataset_sha256
from storage.tracking import Tracker

PACKAGES = ("tamis", "torch", "deepspeed", "prefect", "mlflow", "duckdb")


@contextmanager
def workspace(config: Config) -> Iterator[None]:
    """Hold the workspace for one process.

    Raises:
        BadInput: It cannot be written, or another process works in it.
        storage.errors.WorkspaceTooNew: A newer version made it.
    """
    path = config.workspace / ".lock"
    try:
        config.workspace.mkdir(parents=True, exist_ok=True)
        lock = path.open("a+")
    except OSError as error:
        raise BadInput(f"workspace {config.workspace}: cannot be written ({error.strerror}); give another") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise BadInput(
                f"workspace {config.workspace}: process {lock.read().strip() or 'unknown'} works in it; wait or end it"
            ) from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        ledger = ledger_of(config)
        if ledger.exists:
            ledger.last_cycle()  # opens it, and so refuses a newer one before anything else is touched
        yield


def ledger_of(config: Config) -> Ledger:
    """The workspace's ledger."""
    return Ledger(config.workspace / "ledger.duckdb")


def open_cycle(config: Config, workload: Workload, show: Callable[[Progress], None]) -> Cycle:
    """Continue the unfinished cycle, or open the next one on the data as they are now.

    Raises:
        BadInput: A set is empty or malformed.
        storage.errors.StorageError: Sets that overlap, duplicate ids, a locked or newer ledger.
    """
    show(Progress("reading the data", 0, 1))
    sets = read_sets(workload)
    ledger = ledger_of(config)
    tracker = Tracker(config.workspace, config.name)
    number, parent = _number(ledger, tracker, sets.train)
    removed = ledger.removed_as_of(number - 1) if ledger.exists else frozenset()
    removed &= frozenset(sets.train.ids)
    digest = dataset_sha256(sets.train, removed)
    versions = {name: version(name) for name in PACKAGES}
    digests = {**sets.digests, "code": _code(workload, versions)}
    run = tracker.cycle_run(number, digest, _parameters(config))
    settings = config.model_dump(mode="json", by_alias=True)
    ledger.open_cycle(number, digest, settings, versions, sets.train.id_kind, parent=parent, mlflow_run_id=run)
    folder = cycle_folder(config, number)
    folder.mkdir(parents=True, exist_ok=True)
    sets.train.write(folder / "manifest.parquet")
    record: dict[str, JSON] = {"cycle": number, "config": settings, "versions": versions, "digests": digests}
    atomic_write_json(folder / "cycle.json", record | {"dataset_sha256": digest, "mlflow_run": run})
    tracker.log_dataset(run, config.name, digest, len(sets.train) - len(removed), config.workload.entry)
    show(Progress("reading the data", 1, 1))
    return Cycle(config, number, sets.train, removed, digest, digests, ledger, tracker, run, show)


def _number(ledger: Ledger, tracker: Tracker, train: Manifest) -> tuple[int, int | None]:
    """The number of the cycle to work on and of the one before it; closes a cycle whose data are gone."""
    last = ledger.last_cycle() if ledger.exists else None
    if last is None:
        return 1, None
    unfinished = ledger.unfinished_cycle()
    if unfinished is None:
        return last.cycle + 1, last.cycle
    before = ledger.removed_as_of(unfinished.cycle - 1) & frozenset(train.ids)
    if dataset_sha256(train, before) == unfinished.dataset_sha256:
        return unfinished.cycle, unfinished.parent
    ledger.roll_back(unfinished.cycle, "tamis", "the train set changed while the cycle was open")
    if unfinished.mlflow_run_id:
        tracker.finish(unfinished.mlflow_run_id, failed=True)
    return unfinished.cycle + 1, unfinished.cycle


def _code(workload: Workload, versions: dict[str, str]) -> str:
    try:
        source = inspect.getsource(inspect.getmodule(type(workload)) or type(workload))
    except (OSError, TypeError) as error:
        raise StorageError(f"workload {type(workload).__name__}: its source cannot be read ({error})") from error
    return sha256_json([hashlib.sha256(source.encode()).hexdigest(), versions])


def _parameters(config: Config) -> dict[str, str | int | float | bool]:
    flat: dict[str, str | int | float | bool] = {"workload": config.workload.entry}
    for section in ("training", "scoring", "pruning", "review", "guardrail"):
        for key, value in getattr(config, section).model_dump(mode="json").items():
            flat[f"{section}.{key}"] = value if isinstance(value, str | int | float | bool) else str(value)
    return flat
