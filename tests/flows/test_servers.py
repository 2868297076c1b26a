"""One whole cycle on a team's servers: MLflow on PostgreSQL with its artifacts in a bucket, the ledger in a lake."""

import os
import subprocess
from pathlib import Path

import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from flows.cli import app
from flows.config import load
from flows.errors import BadInput
from flows.stores import ledger_of
from storage import checkpoints
from storage.tracking import Tracker
from tests import services
from tests.flows.helpers import run_here, turn, write_toml
from tests.services import Service

pytestmark = pytest.mark.service


def test_a_cycle_leaves_its_runs_its_model_and_its_ledger_on_the_servers_and_no_secret_anywhere(
    postgres: Service,
    object_store: Service,
    mlflow_server: Service,
    one_rank: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import boto3

    uri = f"http://127.0.0.1:{mlflow_server.port}"
    lake = {"catalog": services.database(postgres, "lake"), "data": "s3://tamis/lake"}
    toml = write_toml(tmp_path, dataset="blobs", servers={"mlflow": uri, "ledger": lake})
    monkeypatch.setattr("flows.stages.run_ranks", run_here)
    summary = turn(toml)
    assert summary.state == "promoted"

    shown = [CliRunner().invoke(app, ["ledger", *command, "--file", str(toml)]) for command in (["verify"], ["log"])]
    assert [done.exit_code for done in shown] == [0, 0]
    ledger = ledger_of(load(toml))
    out = ledger.removed_as_of()
    assert len(out) == summary.removed > 0
    why = ledger.why(min(out)).removal
    assert why is not None
    assert why.proposal == summary.proposal
    for name in ("ledger.duckdb", "mlflow.db", "mlartifacts"):
        assert not (tmp_path / "ws" / name).exists(), "what is on the servers is not in the workspace"

    tracker = Tracker(tmp_path / "elsewhere", "blobs", uri)
    champion = tracker.champion("blobs")
    assert champion is not None
    assert checkpoints.verify(tracker.weights(champion)).digest == champion.digest
    [run] = MlflowClient(uri).search_runs([tracker._experiment], "tags.`tamis.cycle` = '1'")
    assert run.data.tags["tamis.ledger_head"] == ledger.head()
    bucket = boto3.client("s3")
    objects = [item["Key"] for item in bucket.list_objects_v2(Bucket="tamis")["Contents"]]
    assert any(key.startswith("mlflow/") and key.endswith("review/00_report.html") for key in objects)
    assert any(key.startswith("mlflow/") and key.endswith("model.safetensors") for key in objects)
    assert any(key.startswith("lake/") and key.endswith(".parquet") for key in objects)

    secrets = [postgres.environment["PGPASSWORD"], object_store.environment["AWS_SECRET_ACCESS_KEY"]]
    kept = [path.read_bytes() for path in (tmp_path / "ws").rglob("*") if path.is_file()]
    kept += [(run.to_dictionary().__repr__() + str(summary) + str(shown)).encode()]
    kept += [bucket.get_object(Bucket="tamis", Key=key)["Body"].read() for key in objects]
    assert not [secret for secret in secrets if any(secret.encode() in data for data in kept)]


def test_a_ledger_that_is_another_data_sets_is_left_as_it_is(postgres: Service, tmp_path: Path) -> None:
    lake = {"catalog": services.database(postgres, "two"), "data": str(tmp_path / "rows"), "name": "shared"}
    ledger = ledger_of(load(write_toml(tmp_path, dataset="digits", servers={"ledger": lake})))
    settings = {"dataset": "", "workload": {"class": "shop.py:digits"}}
    ledger.open_cycle(1, "a" * 64, settings, {}, "int")
    with pytest.raises(BadInput, match=r"that of data set 'digits', and this file's is 'blobs': give servers\.ledger"):
        turn(write_toml(tmp_path / "other", dataset="blobs", servers={"ledger": lake}))
    assert ledger.unfinished_cycle() is not None


def test_prefect_keeps_what_it_knows_in_the_same_postgresql(postgres: Service, tmp_path: Path) -> None:
    kept = services.database(postgres, "prefect")
    with services.prefect_server(tmp_path, kept, postgres.environment):
        count = ["psql", "--tuples-only", kept, "--command", "SELECT count(*) FROM flow_run"]
        done = subprocess.run(count, env=os.environ | postgres.environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) == 0
    assert not list(tmp_path.glob("*.db*"))
