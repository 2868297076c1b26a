"""Prefect's server, where one is named, and the MLflow store."""

from __future__ import annotations

import os
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from flows.config import Config
from flows.errors import BadInput
from flows.redaction import without_password
from storage.errors import StorageError

TIMEOUT_SECONDS = 10.0


def prefect(config: Config) -> str:
    """The server that PREFECT_API_URL names answers."""
    url = os.environ.get("PREFECT_API_URL", "")
    if config.orchestrator == "none":
        return "not used (orchestrator = 'none')"
    if not url:
        return "PREFECT_API_URL is not set: a run starts a temporary server of its own"
    shown = without_password(url)
    remedy = "start the server, mend PREFECT_API_URL, or unset it for a temporary one"
    try:
        with urlopen(f"{url.rstrip('/')}/health", timeout=TIMEOUT_SECONDS):
            return f"the server at {shown} answers"
    except HTTPError as error:
        raise BadInput(f"what is at {shown} answers {error.code}, not as Prefect's API does: {remedy}") from error
    except (URLError, OSError, ValueError) as error:
        raise BadInput(f"no server answers at {shown} ({without_password(str(error))}): {remedy}") from error


def is_store_current(config: Config) -> bool:
    """Whether the store, if there is one, can be asked."""
    try:
        mlflow(config)
    except StorageError:
        return False
    return True


def mlflow(config: Config) -> str:
    """The server answers, or the file opens and has the schema of the MLflow that is installed."""
    if config.servers.mlflow:
        from storage.mlflow_store import server_store

        return f"the server at {server_store(config.servers.mlflow).uri} answers"
    store = config.workspace / "mlflow.db"
    if not store.exists():
        return "no store yet: the first cycle makes one"
    from storage.tracking_health import check_schema

    return f"the store opens, its schema is {check_schema(store)}"
