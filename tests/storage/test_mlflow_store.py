"""MLflow servers that do not answer, that refuse, and that hold another model than the one registered."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from storage import checkpoints
from storage.errors import CheckpointDamaged, ServerUnusable
from storage.tracking import ModelVersion, Tracker
from tests.services import Service, free_ports
from tests.storage.test_tracking import checkpoint


class Guarded(BaseHTTPRequestHandler):
    """MLflow behind a proxy that wants a password: the health page is open, the rest is not."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 401)
        self.end_headers()
        self.wfile.write(b"You are not authenticated. token=abc")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def guarded() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Guarded)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_server_that_is_not_there_is_one_line_at_once(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with pytest.raises(ServerUnusable, match=rf"http://127.0.0.1:{port} .*does not answer: start it or correct") as got:
        Tracker(tmp_path, "digits", f"http://127.0.0.1:{port}")
    assert "\n" not in str(got.value)
    assert not (tmp_path / "mlflow.db").exists(), "runs do not go elsewhere in silence"


def test_refused_credentials_are_one_line_that_says_where_they_come_from(guarded: str, tmp_path: Path) -> None:
    with pytest.raises(ServerUnusable, match=r"refuses the credentials: set MLFLOW_TRACKING_USERNAME") as got:
        Tracker(tmp_path, "digits", guarded)
    assert "\n" not in str(got.value)
    assert "abc" not in str(got.value)


@pytest.fixture
def straight(mlflow_server: Service, tmp_path: Path) -> Tracker:
    """Of an experiment whose artifacts do not go through the server."""
    uri = f"http://127.0.0.1:{mlflow_server.port}"
    MlflowClient(uri).create_experiment(tmp_path.name, f"s3://tamis/{tmp_path.name}")
    return Tracker(tmp_path / "ws", tmp_path.name, uri)


def registered(tracker: Tracker) -> ModelVersion:
    run = tracker.cycle_run(1, "a", {})
    return tracker.register(run, checkpoint(tracker.workspace / "saved", 1.0), tracker.workspace.parent.name)


@pytest.mark.service
def test_artifacts_that_go_straight_to_the_bucket_come_back_from_it(straight: Tracker) -> None:
    version = registered(straight)
    assert version.source.startswith("s3://tamis/")
    np.testing.assert_array_equal(checkpoints.read_tensors(straight.weights(version))["w"], np.full(3, 1.0))


@pytest.mark.service
def test_a_copy_of_the_champion_is_checked_and_made_anew_where_it_is_damaged(straight: Tracker) -> None:
    version = registered(straight)
    (straight.weights(version) / "model.safetensors").write_bytes(b"torn")
    assert checkpoints.verify(straight.weights(version)).digest == version.digest


@pytest.mark.service
def test_a_model_that_was_changed_in_the_bucket_is_refused_and_not_kept(straight: Tracker) -> None:
    import boto3

    version = registered(straight)
    key = version.source.removeprefix("s3://tamis/") + "/model.safetensors"
    boto3.client("s3").put_object(Bucket="tamis", Key=key, Body=b"another model")
    with pytest.raises(CheckpointDamaged, match="is not the one that was registered there"):
        straight.weights(version)
    assert not list((straight.workspace / "champion").rglob("model.safetensors"))


REPORT = "import sys; from pathlib import Path; from storage.tracking import Tracker; from storage.errors import *\n"
REPORT += "tracker = Tracker(Path(sys.argv[1]), *sys.argv[2:])\n"
REPORT += "try: tracker.log_report(tracker.cycle_run(1, 'a', {}), '')\n"
REPORT += "except ServerUnusable as error: print(error)"


@pytest.mark.service
def test_keys_that_the_object_store_refuses_are_one_line(straight: Tracker) -> None:
    command = [sys.executable, "-c", REPORT, str(straight.workspace), straight.workspace.parent.name, straight.uri]
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        done = subprocess.run(command, env=os.environ | {key: "wrong"}, capture_output=True, text=True, check=True)
        assert "refuses the credentials" in done.stdout
        assert len(done.stdout.splitlines()) == 1
