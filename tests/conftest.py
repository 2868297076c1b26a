"""Fixtures that are costly to set up: each once per session, and only where a test asks for it."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import services
from tests.services import Service

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What starts servers, or is one of many that differ in a word, is no part of `make test`."""
    for item in items:
        if item.get_closest_marker("service") or item.get_closest_marker("matrix"):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Prefect with a temporary server of its own."""
    from flows.server import prefect_environment

    before = dict(os.environ)
    prefect_environment(tmp_path_factory.mktemp("prefect"))
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=180):
        os.environ.clear()  # commands that other tests start are to find their own settings
        os.environ.update(before)
        yield


@pytest.fixture(scope="session")
def one_rank() -> Iterator[None]:
    """A process group of this process alone, in which DeepSpeed and the rank programs work."""
    import torch
    import torch.distributed as dist

    from flows.ranks.engine import connect

    os.environ["LOCAL_RANK"] = "0"
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    connect(torch.device("cpu"), "gloo")
    yield
    dist.destroy_process_group()
    del os.environ["LOCAL_RANK"]


@pytest.fixture(autouse=True)
def _linear_of_torch() -> Iterator[None]:
    """ZeRO-3 replaces torch's linear function in the whole process, by one that has no forward derivative."""
    from torch.nn import functional

    linear = functional.linear
    yield
    functional.linear = linear


@pytest.fixture(scope="session")
def mlflow_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow store without experiments, to be copied: making its tables takes seconds."""
    from storage.tracking import Tracker

    folder = tmp_path_factory.mktemp("mlflow")
    Tracker(folder, "unused")
    return folder / "mlflow.db"


@pytest.fixture
def here(one_rank: None, mlflow_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a workspace `ws`, in which cycles run inside this process."""
    import shutil

    from tests.flows.helpers import run_here

    monkeypatch.setattr("flows.stages.run_ranks", run_here)
    (tmp_path / "ws").mkdir()
    shutil.copy(mlflow_store, tmp_path / "ws")
    return tmp_path


@pytest.fixture(scope="session")
def postgres() -> Iterator[Service]:
    """A PostgreSQL server; its password is in the environment."""
    with services.postgres() as server, _set(server.environment):
        yield server


@pytest.fixture(scope="session")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """An S3 server that makes a bucket at the first write to it; its keys are in the environment."""
    with services.object_store(tmp_path_factory.mktemp("s3")) as server, _set(server.environment):
        yield server


@pytest.fixture(scope="session")
def mlflow_server(
    postgres: Service, object_store: Service, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """An MLflow server on the database, through which artifacts go to the bucket."""
    folder, environment = tmp_path_factory.mktemp("mlflow-server"), {**postgres.environment, **object_store.environment}
    with services.mlflow_server(folder, services.database(postgres, "mlflow"), environment) as server:
        yield server


@contextmanager
def _set(environment: Mapping[str, str]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield
