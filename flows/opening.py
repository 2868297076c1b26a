"""The stage `open`: which cycle is next, on which data, in which workspace; one process at a time."""

from __future__ import annotations

import hashlib
import inspect
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.anchors import check_anchor
from flows.announcements import forget
from flows.config import Config, dataset_name
from flows.dataset import DataSets, read_sets
from flows.errors import BadInput
from flows.holding import lock_of, locked
from flows.installed import version_of
from flows.launch import Progress
from flows.moving import in_force, manifest_of_cycle, record_moves
from flows.protection import vanished
from flows.redaction import redacted
from flows.relabeling import check_relabeling
from flows.stages import Cycle, cycle_folder
from flows.stores import identity_of, ledger_of, tracker_of
from flows.workload import Workload, seeded_model
from storage import checkpoints
from storage.errors import StorageError
from storage.files import JSON, atomic_write_json, sha256_json
from storage.lake import Lake
from storage.ledger import Ledger
from storage.points import Manifest, dataset_sha256
from storage.tracking import Tracker

TRIAL = "trial"
"""In the workspace: what `tamis check` tries, and removes."""
PACKAGES = ("tamis", "torch", "deepspeed", "prefect", "mlflow", "duckdb")


@contextmanager
def workspace(config: Config, *, wait: bool = False) -> Iterator[None]:
    """Hold the workspace for one process.

    Args:
        config: Names it.
        wait: Until another process has ended that works in it.

    Raises:
        BadInput: It cannot be written, or another process works in it.
        storage.errors.WorkspaceTooNew: A newer version made it.
    """
    path = lock_of(config.workspace)
    try:
        config.workspace.mkdir(parents=True, exist_ok=True)
        lock = path.open("a+")
    except OSError as error:
        raise BadInput(f"workspace {config.workspace}: cannot be written ({error.strerror}); give another") from error
    with lock:
        while not locked(lock):
            if wait:
                continue
            lock.seek(0)
            raise BadInput(
                f"workspace {config.workspace}: process {lock.read().strip() or 'unknown'} works in it; wait or end it"
            )
        lock.truncate(0)
        lock.write(f"{os.getpid()} ({' '.join([Path(sys.argv[0]).name, *sys.argv[1:]])})")
        lock.flush()
        forget(config.workspace)
        shutil.rmtree(config.workspace / TRIAL, ignore_errors=True)  # of a check that was killed
        ledger = ledger_of(config)
        if ledger.exists:
            ledger.last_cycle()  # opens it, and so refuses a newer one before anything else is touched
        yield


def open_cycle(config: Config, workload: Workload, show: Callable[[Progress], None]) -> Cycle:
    """Continue the unfinished cycle, or open the next one on the data as they are now.

    Raises:
        BadInput: A set is empty or malformed, points are relabelled and the workload cannot be, a shared ledger is
            another data set's, or the ledger lacks the head that MLflow keeps.
        storage.errors.StorageError: Sets that overlap, duplicate ids, a locked or newer ledger, points decided on
            meanwhile.
    """
    show(Progress("reading the data", 0, 1))
    sets = read_sets(workload)
    ledger = ledger_of(config)
    _check_owner(ledger, config)
    tracker = tracker_of(config)
    if tracker.is_anothers():
        raise BadInput(
            f"the MLflow server {config.servers.mlflow} has cycles of another workspace under the name "
            f"{config.name!r}, whose champion this one would replace: give `dataset` a name of its own, or work in "
            "that workspace"
        )
    check_anchor(config)  # before a cycle of the same number puts another head in its place
    number, parent = _number(ledger, tracker, sets.train)
    known = in_force(ledger, number - 1, sets.train)
    if known.relabeled:
        check_relabeling(workload, seeded_model(workload, 0), workload.points())
    check_champion(tracker, config, workload)
    digest = dataset_sha256(sets.train, known.removed, known.relabeled)
    versions = _versions()
    digests = digests_of(workload, sets)
    run = tracker.cycle_run(number, digest, _parameters(config))
    settings = redacted(config.model_dump(mode="json", by_alias=True))
    if identity := identity_of(config):
        settings["identity"] = identity
    ids = sets.train.id_kind
    ledger.open_cycle(number, digest, settings, versions, ids, parent, mlflow_run_id=run, decided=known.decided)
    folder = cycle_folder(config, number)
    folder.mkdir(parents=True, exist_ok=True)
    sets.train.write(manifest_of_cycle(config.workspace, number))
    said = [record_moves(ledger, config.workspace, number, sets.train), vanished(config.pruning, sets.train)]
    moved = "; ".join(filter(None, said))
    record: dict[str, JSON] = {"cycle": number, "config": settings, "versions": versions, "digests": digests}
    record |= {"dataset_sha256": digest, "mlflow_run": run, "git_revision": _revision(config)}
    atomic_write_json(folder / "cycle.json", record)
    tracker.log_dataset(run, config.name, digest, len(sets.train) - len(known.removed), config.workload.entry)
    show(Progress("reading the data", 1, 1))
    return Cycle(
        config, number, sets.train, known.removed, digest, digests, ledger, tracker, run, show, known.relabeled, moved
    )


def _check_owner(ledger: Ledger, config: Config) -> None:
    """To the data set of this TOML another one's cycle looks like its own on data that moved: it would be undone."""
    if not isinstance(ledger.path, Lake) or not ledger.exists or (last := ledger.last_cycle()) is None:
        return
    entry = last.config.get("workload", {}).get("class")
    owner = dataset_name(last.config.get("dataset", ""), entry) if entry else config.name
    if owner != config.name:
        raise BadInput(
            f"the ledger {ledger.path} is that of data set {owner!r}, and this file's is {config.name!r}: give "
            "servers.ledger a `name` of its own, or `dataset` that name if the data are the same"
        )


def _number(ledger: Ledger, tracker: Tracker, train: Manifest) -> tuple[int, int | None]:
    """The number of the cycle to work on and of the one before it; closes a cycle whose data are gone."""
    last = ledger.last_cycle() if ledger.exists else None
    if last is None:
        return 1, None
    unfinished = ledger.unfinished_cycle()
    if unfinished is None:
        return last.cycle + 1, last.cycle
    before = in_force(ledger, unfinished.cycle - 1, train)
    if dataset_sha256(train, before.removed, before.relabeled) == unfinished.dataset_sha256:
        return unfinished.cycle, unfinished.parent
    ledger.roll_back(unfinished.cycle, "rule:data-moved", "the train set changed while the cycle was open")
    if run := tracker.run_of(unfinished.cycle):
        tracker.finish(run, failed=True)
    return unfinished.cycle + 1, unfinished.cycle


def check_champion(tracker: Tracker, config: Config, workload: Workload) -> None:
    """Check that the champion is of the workload's model: another could not be judged, better said before a training.

    Raises:
        BadInput: It is of another one.
    """
    champion = tracker.champion(config.name)
    if champion is None:
        return
    theirs = {name: value.shape for name, value in checkpoints.read_tensors(tracker.weights(champion)).items()}
    ours = {name: tuple(value.shape) for name, value in seeded_model(workload, 0).state_dict().items()}
    if theirs != ours:
        raise BadInput(
            f"the champion of data set {config.name!r} (version {champion.version}) is of another model than the "
            "workload's: give `dataset` a new name, which starts without a champion, or go back to that model"
        )


def _versions() -> dict[str, str]:
    return {name: version_of(name) for name in PACKAGES}


def digests_of(workload: Workload, sets: DataSets) -> dict[str, str]:
    """Digests of the three sets, of the workload's files and of the versions: what a stage's result depends on."""
    return {**sets.digests, "code": _code(workload, _versions())}


def _code(workload: Workload, versions: dict[str, str]) -> str:
    """A digest of the modules that the workload's class is made of, and of the versions."""
    modules = [sys.modules[base.__module__] for base in type(workload).__mro__ if base is not object]
    try:
        sources = [inspect.getsource(module) for module in modules]
    except (OSError, TypeError) as error:
        raise StorageError(f"workload {type(workload).__name__}: its source cannot be read ({error})") from error
    return sha256_json([[hashlib.sha256(source.encode()).hexdigest() for source in sources], versions])


def _revision(config: Config) -> str | None:
    """The git revision of the folder of the TOML, if it is in a repository."""
    command = ["git", "-C", str(config.file.parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None


def _parameters(config: Config) -> dict[str, str | int | float | bool]:
    flat: dict[str, str | int | float | bool] = {"workload": config.workload.entry}
    for section in ("training", "scoring", "pruning", "review", "guardrail"):
        for key, value in redacted(getattr(config, section).model_dump(mode="json")).items():
            flat[f"{section}.{key}"] = value if isinstance(value, str | int | float | bool) else str(value)
    return flat
