"""The ledger and the MLflow store of a tamis.toml: files in its workspace, or the servers that it names."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import uuid4

from flows.config import Config
from storage.files import atomic_write_json, read_json
from storage.lake import Lake
from storage.ledger import Ledger

if TYPE_CHECKING:
    from storage.tracking import Tracker

IDENTITY = "workspace.json"


def ledger_of(config: Config) -> Ledger:
    """The workspace's ledger."""
    given = config.servers.ledger
    return Ledger(
        Lake(given.catalog, given.data, given.schema_of(config.name)) if given else config.workspace / "ledger.duckdb"
    )


def store_uri(config: Config) -> str | None:
    """MLflow's tracking URI; None where the store is a file that is not there yet."""
    store = config.workspace / "mlflow.db"
    return config.servers.mlflow or (f"sqlite:///{store}" if store.exists() else None)


def identity_of(config: Config) -> str:
    """What tells this workspace's runs on a shared MLflow server from others'; empty where there are none yet.

    It is kept in the workspace and with every cycle in the ledger: whichever of them is lost, the other has it.
    """
    path = config.workspace / IDENTITY
    if not config.servers.mlflow:
        return ""
    if path.exists():
        return str(read_json(path)["id"])
    ledger = ledger_of(config)
    last = ledger.last_cycle() if ledger.exists else None
    return str(last.config.get("identity", "")) if last else ""


def tracker_of(config: Config) -> Tracker:
    """The MLflow store that the workspace's runs are in.

    Raises:
        storage.errors.StorageError: It cannot be opened, or does not answer.
    """
    from storage.tracking import Tracker  # imports MLflow

    identity = identity_of(config)
    if config.servers.mlflow and not (config.workspace / IDENTITY).exists():
        identity = identity or uuid4().hex
        atomic_write_json(config.workspace / IDENTITY, {"id": identity})
    return Tracker(config.workspace, config.name, config.servers.mlflow, identity)
