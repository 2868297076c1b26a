"""Where MLflow keeps a workspace's runs: a file and a folder beside the ledger, or a server.

A server is asked over HTTP, and artifacts go where it says: through it, or straight to its object store. Credentials
are MLflow's own variables of the environment (MLFLOW_TRACKING_USERNAME, …; AWS_ACCESS_KEY_ID, …) and stand nowhere
else.
"""

import functools
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

import storage.mlflow_quiet  # noqa: F401

# isort: split
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request
from sqlalchemy.exc import SQLAlchemyError

from storage import checkpoints
from storage.errors import CheckpointDamaged, ServerUnusable, StorageError, WriteFailed
from storage.files import atomic_folder, atomic_path

ANSWER_SECONDS = 10
REFUSED = (
    *("error code 401", "error code 403", "UNAUTHENTICATED", "PERMISSION_DENIED"),
    *("InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "Unable to locate credentials"),
)
SILENT = ("failed with exception", "Max retries exceeded", "Could not connect to the endpoint")


@dataclass(frozen=True)
class Store:
    """An MLflow store.

    Attributes:
        uri: What MLflow calls the tracking URI.
        artifacts: Where a new experiment keeps its artifacts; None: where the server says.
        server: Whether it is one.
    """

    uri: str
    artifacts: str | None
    server: bool

    @contextmanager
    def named(self) -> Iterator[None]:
        """Say in one line what the store refuses."""
        try:
            yield
        except store_errors() as error:
            raise self.said(error) from error

    def said(self, error: Exception) -> StorageError:
        """What went wrong, in one line."""
        text = " ".join(str(error).split())
        if not self.server:
            return WriteFailed(
                f"MLflow cannot open or write its store: {str(error).splitlines()[0]}; free space or fix permissions, "
                "then run again"
            )
        if any(sign in text for sign in REFUSED):
            return ServerUnusable(
                f"the MLflow server {self.uri} or its artifact store refuses the credentials: set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN (and, for artifacts "
                "that do not go through the server, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"
            )
        if any(sign in text for sign in SILENT):
            return ServerUnusable(
                f"the MLflow server {self.uri} or its artifact store does not answer: start it or correct "
                "servers.mlflow, then run again"
            )
        return ServerUnusable(f"the MLflow server {self.uri} refuses: {text[:300]}")


def file_store(workspace: Path) -> Store:
    """The store in a workspace, made if there is none.

    Raises:
        StorageError: MLflow cannot open a path like this.
    """
    if set("%?") & set(str(workspace)):
        raise StorageError(f"the workspace {workspace} has % or ? in its path, which MLflow cannot open; rename it")
    store = Store(f"sqlite:///{workspace / 'mlflow.db'}", (workspace / "mlartifacts").as_uri(), server=False)
    path = workspace / "mlflow.db"
    if not path.exists():
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore  # not in mlflow-skinny

        with atomic_path(path) as draft:  # whole or not at all: its migrations, once killed, cannot be continued
            draft.open("ab").close()
            kind: Any = SqlAlchemyStore
            kind(f"sqlite:///{draft}", store.artifacts)._dispose_engine()
    path.open("ab").close()  # or MLflow retries an unwritable file for minutes
    return store


def server_store(uri: str) -> Store:
    """A server, once it has answered: MLflow itself would try for minutes.

    Raises:
        ServerUnusable: It does not answer.
    """
    store = Store(uri.rstrip("/"), None, server=True)
    try:
        creds: Any = get_default_host_creds(store.uri)
        http_request(creds, "/health", "GET", max_retries=0, timeout=ANSWER_SECONDS, raise_on_status=False)
    except (OSError, MlflowException) as error:
        raise store.said(error) from error
    return store


@functools.cache
def store_errors() -> tuple[type[Exception], ...]:
    """What MLflow, its database, the network or an object store raises."""
    errors: tuple[type[Exception], ...] = (OSError, MlflowException, SQLAlchemyError)
    try:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError:  # the extra `servers` has it; nothing can raise them without
        return errors
    return (*errors, Boto3Error, BotoCoreError, ClientError)


def weights(store: Store, source: str, digest: str, cache: Path) -> Path:
    """The folder with the parameters of a registered version: its own if it is on this machine, else a checked copy.

    Args:
        store: Where it was registered.
        source: Of the version.
        digest: Of the checkpoint that it was registered with.
        cache: Folder for copies; the newest alone is kept.

    Raises:
        CheckpointDamaged: What was downloaded is not what was registered.
    """
    parts = urlparse(source)
    if parts.scheme in ("", "file"):
        return Path(url2pathname(parts.path))
    kept = cache / digest
    if kept.exists() and _is_whole(kept, digest):
        return kept
    shutil.rmtree(cache, ignore_errors=True)
    with atomic_folder(kept) as draft:
        get_artifact_repository(source, tracking_uri=store.uri).download_artifacts("", str(draft))
        if not _is_whole(draft, digest):
            raise CheckpointDamaged(
                f"the model at {source} is not the one that was registered there: its files were changed since; put "
                "them back, or move the alias `champion` to another version"
            )
    return kept


def _is_whole(folder: Path, digest: str) -> bool:
    try:
        return checkpoints.verify(folder).digest == digest
    except CheckpointDamaged:
        return False
