"""An MLflow store looked at from outside: its schema, runs that nothing will end, the head of the ledger it keeps."""

import sqlite3
from collections.abc import Callable, Collection
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import storage.mlflow_quiet  # noqa: F401

# isort: split
from mlflow import MlflowClient
from mlflow.store.db import utils

from storage.errors import StorageError
from storage.mlflow_store import Store

newest_schema: Callable[[], str] = utils._get_latest_schema_revision


@dataclass(frozen=True)
class Unended:
    """A run that says it is still running; `cycle` is empty where it is of none."""

    run: str
    name: str
    cycle: str


@dataclass(frozen=True)
class Anchor:
    """The head of the ledger's chain on the run of a cycle."""

    run: str
    cycle: int
    head: str


def check_schema(store: Path) -> str:
    """The schema of a store, if it is that of the MLflow which is installed.

    Raises:
        StorageError: the file is no store, or one of another version.
    """
    try:
        with closing(sqlite3.connect(f"{store.resolve().as_uri()}?mode=ro", uri=True)) as con:
            found = [row[0] for row in con.execute("SELECT version_num FROM alembic_version")]
    except sqlite3.Error as error:
        raise StorageError(f"{store} cannot be opened as MLflow's store ({error}): restore a copy of it") from error
    expected = newest_schema()
    if found != [expected]:
        raise StorageError(
            f"{store} has schema {', '.join(found) or 'none'}, MLflow's is {expected}: copy the file, then "
            f"`mlflow db upgrade sqlite:///{store}`, or install the MLflow that made it"
        )
    return expected


def unended_runs(store: str, experiment: str, open_cycles: Collection[str], identity: str) -> tuple[Unended, ...]:
    """Runs that are left running: every one of the workspace in the experiment but those of open cycles.

    Args:
        store: URI of a server, or of a file of the current schema.
        experiment: Name of the data set.
        open_cycles: Numbers of the cycles that will end their run themselves.
        identity: Of the workspace, where it shares a server with others; else empty.

    Raises:
        StorageError: The store does not answer, or refuses.
    """
    running = "attributes.status = 'RUNNING'" + (f" AND tags.`tamis.workspace` = '{identity}'" if identity else "")
    with _store(store).named():
        client = MlflowClient(store)
        found = client.get_experiment_by_name(experiment)
        runs = client.search_runs([found.experiment_id], running) if found else []
    seen = (Unended(run.info.run_id, run.info.run_name, run.data.tags.get("tamis.cycle", "")) for run in runs)
    return tuple(run for run in seen if run.cycle not in open_cycles)


def newest_anchor(store: str, experiment: str, identity: str) -> Anchor | None:
    """The head of the ledger on the run of the last cycle that has one; arguments and raises as `unended_runs`."""
    kept = "tags.`tamis.ledger_head` LIKE '%'" + (f" AND tags.`tamis.workspace` = '{identity}'" if identity else "")
    with _store(store).named():
        client = MlflowClient(store)
        found = client.get_experiment_by_name(experiment)
        runs = client.search_runs([found.experiment_id], kept) if found else []  # a thousand, the newest first
    tags = [(run.info.run_id, run.data.tags) for run in runs]
    anchors = [Anchor(run, int(said["tamis.cycle"]), said["tamis.ledger_head"]) for run, said in tags]
    return max(anchors, key=lambda anchor: anchor.cycle, default=None)


def end_runs(store: str, runs: Collection[Unended]) -> None:
    """Let runs that nothing will end show that they failed; raises as `unended_runs`."""
    with _store(store).named():
        client = MlflowClient(store)
        for run in runs:
            client.set_terminated(run.run, "FAILED")


def _store(uri: str) -> Store:
    return Store(uri, None, server=uri.startswith("http"))
