"""The ledger and the MLflow store of a tamis.toml: files in its workspace, or the servers that it names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flows.config import Config
from storage.lake import Lake
from storage.ledger import Ledger

if TYPE_CHECKING:
    from storage.tracking import Tracker


def ledger_of(config: Config) -> Ledger:
    """The workspace's ledger."""
    given = config.servers.ledger
    return Ledger(Lake(given.catalog, given.data, given.schema_of(config.name)) if given else config.workspace / "ledger.duckdb")


def store_uri(config: Config) -> str | None:
    """MLflow's tracking URI; None where the store is a file that is not there yet."""
    store = config.workspace / "mlflow.db"
    return config.servers.mlflow or (f"sqlite:///{store}" if store.exists() else None)


def tracker_of(config: Config) -> Tracker:
    """The MLflow store that the workspace's runs are in.

    Raises:
        storage.errors.StorageError: It cannot be opened, or does not answer.
    """
    from storage.tracking import Tracker  # imports MLflow

    return Tracker(config.workspace, config.name, config.servers.mlflow)
