"""`tamis doctor` says of a workspace in order that it is, finds each thing that may be wrong, and changes nothing."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import duckdb
import numpy as np
import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from flows.cli import app
from flows.config import Config, load
from flows.diagnosis import processes
from flows.doctor import DIAGNOSES, examine
from flows.garbage import torn_files
from flows.server import MARK
from storage import checkpoints, score_store
from storage.checkpoints import Metadata
from storage.errors import ServerUnusable
from storage.journal import journal_of
from storage.ledger import Ledger
from storage.tracking import Tracker
from storage.tracking_health import unended_runs
from tests.flows.helpers import write_toml
from tests.services import free_ports
from tests.storage.ledgers import full_ledger
from tests.storage.score_tables import Row, write


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, mlflow_store: Path) -> Path:
    """A folder with a workspace of three cycles as they leave it, the last of which is open."""
    made = load(write_toml(tmp_path_factory.mktemp("doctor") / "a project"))
    made.workspace.mkdir()
    (made.workspace / "mlflow.db").write_bytes(mlflow_store.read_bytes())
    full_ledger(made.workspace / "ledger.duckdb")
    tracker = Tracker(made.workspace, made.name)
    for number in (1, 2, 3):
        folder = made.workspace / "cycles" / f"{number:06d}"
        draft = checkpoints.begin(folder / "checkpoints" / "baseline-seed0", 10)
        checkpoints.write_tensors(draft, {"w": np.ones(3)})
        checkpoints.commit(draft, Metadata("baseline", 0, 10, "model", 1))
        write(folder / "scores", [Row(point, -1.0) for point in range(4)])
        score_store.finish(folder / "scores", 1)
        run = tracker.cycle_run(number, "data", {})
        (folder / "cycle.json").write_text(json.dumps({"mlflow_run": run}))
        if number < 3:
            tracker.finish(run)
    return made.file.parent


@pytest.fixture
def config(project: Path, tmp_path: Path) -> Config:
    return load(Path(shutil.copytree(project, tmp_path / "a project")) / "tamis.toml")


def wrong(config: Config) -> dict[str, str]:
    return {finding.name: finding.text for finding in examine(config) if not finding.ok}


def test_a_workspace_in_order_has_a_line_for_everything_and_none_is_wrong(config: Config) -> None:
    findings = examine(config)
    assert [finding.name for finding in findings] == list(DIAGNOSES)
    assert all(finding.ok and "\n" not in finding.text for finding in findings), findings


def test_so_has_a_workspace_that_is_not_there_yet_and_it_is_not_made(tmp_path: Path) -> None:
    config = load(write_toml(tmp_path))
    assert not wrong(config)
    assert not config.workspace.exists()


def test_the_command_ends_with_2_if_anything_is_wrong_and_gives_json(config: Config) -> None:
    runner = CliRunner()
    assert runner.invoke(app, ["doctor", str(config.file)]).exit_code == 0
    (config.workspace / "cycles" / "000001" / ".report.html.1.tmp").touch()
    done = runner.invoke(app, ["doctor", str(config.file), "--json"])
    assert done.exit_code == 2
    assert [one["name"] for one in json.loads(done.stdout) if not one["ok"]] == ["files"]
    assert "WRONG files: " in runner.invoke(app, ["doctor", str(config.file)]).stdout


def test_a_package_outside_its_range_is_named_with_what_to_install(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = tmp_path / "site" / "fastapi-0.165.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: fastapi\nVersion: 0.165.0\n")
    monkeypatch.syspath_prepend(str(about.parent))
    said = "fastapi 0.165.0, Tamis asks for <0.151,>=0.139: pip install 'fastapi<0.151,>=0.139'"
    assert wrong(config) == {"versions": said}


def test_a_package_that_is_not_installed_is_named(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["duckdb>=1.5.5", "no-such-package>=2"]
    monkeypatch.setattr("flows.diagnosis.installation.requires", lambda _: asked)
    assert wrong(config)["versions"] == "no-such-package is not installed: pip install 'no-such-package>=2'"


def test_another_python_is_named(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.python_version", lambda: "3.9.2")
    assert wrong(config)["versions"].startswith("Python 3.9.2, Tamis asks for >=3.11")


@contextmanager
def server(code: int) -> Iterator[str]:
    """Answers every request with a code."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield f"127.0.0.1:{made.server_port}/api"
        made.shutdown()
        thread.join()


def test_a_prefect_server_that_is_named_must_answer_and_its_password_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load(write_toml(tmp_path, orchestrator="prefect"))
    with server(200) as address:
        monkeypatch.setenv("PREFECT_API_URL", f"http://{address}")
        assert not wrong(config)
    with server(404) as address:
        monkeypatch.setenv("PREFECT_API_URL", f"http://{address}")
        assert "answers 404" in wrong(config)["prefect"]
    monkeypatch.setenv("PREFECT_API_URL", f"http://ada:hunter2@{address}")  # nobody is there any more
    assert f"no server answers at http://ada:***@{address}" in wrong(config)["prefect"]
    assert "hunter2" not in wrong(config)["prefect"]


def test_an_mlflow_store_of_another_schema_or_none_at_all_is_found(config: Config) -> None:
    store = config.workspace / "mlflow.db"
    with sqlite3.connect(store) as con:
        con.execute("UPDATE alembic_version SET version_num = 'abc'")
    before = store.read_bytes()
    assert "has schema abc" in wrong(config)["mlflow"]
    assert "mlflow db upgrade" in wrong(config)["mlflow"]
    assert store.read_bytes() == before
    store.write_bytes(b"no database")
    assert "restore a copy" in wrong(config)["mlflow"]


@contextmanager
def process(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that says when it is ready, and is ended."""
    started = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, env=os.environ | environment)
    try:
        assert started.stdout is not None
        assert started.stdout.readline()
        yield started
    finally:
        started.kill()
        started.wait()


WAITS = "import time; print('ready', flush=True); time.sleep(600)"
HOLDS = f"""
import fcntl, os, sys
lock = open(sys.argv[1], "a+")
fcntl.flock(lock, fcntl.LOCK_EX)
lock.write(f"{{os.getpid()}} (tamis run)")
lock.flush()
{WAITS}
"""
OPENS = f"import duckdb, sys; con = duckdb.connect(sys.argv[1]); {WAITS}"


def test_who_works_in_the_workspace_is_named_and_one_that_is_stopped_is_wrong(config: Config) -> None:
    with process("-c", HOLDS, str(config.workspace / ".lock")) as held:
        named = {finding.name: finding.text for finding in examine(config) if finding.ok}
        assert named["workspace"] == f"process {held.pid} (tamis run) works in it"
        held.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, held.pid, os.WSTOPPED)
        assert f"kill -CONT {held.pid}" in wrong(config)["workspace"]


def test_a_process_that_keeps_the_ledger_is_named(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "LEDGER_SECONDS", 0.1)
    monkeypatch.setattr("storage.ledger_views.LedgerViews.__init__.__defaults__", (0.1,))
    with process("-c", OPENS, str(config.workspace / "ledger.duckdb")) as held:
        assert f"process {held.pid}" in wrong(config)["ledger"]


def test_ranks_and_servers_that_a_killed_command_left_are_named(config: Config) -> None:
    plan = str(config.workspace / "cycles" / "000003" / "plans" / "train.json")
    with process("-c", WAITS, "flows.ranks.train", plan) as rank:
        assert f"`kill {rank.pid}`" in wrong(config)["processes"]
    with process("-c", WAITS, "prefect.server", **{MARK: str(config.workspace)}) as left:
        assert f"`kill {left.pid}`" in wrong(config)["processes"]
    with process("-c", WAITS, "prefect.server", **{MARK: "/another"}):
        assert not wrong(config)


def test_a_journal_that_was_left_is_found_and_not_put_back(config: Config) -> None:
    ledger = config.workspace / "ledger.duckdb"
    journal_of(ledger).write_bytes(ledger.read_bytes())
    assert "puts it back" in wrong(config)["ledger"]
    assert journal_of(ledger).exists()


def test_a_row_that_another_hand_changed_is_named(config: Config) -> None:
    with duckdb.connect(str(config.workspace / "ledger.duckdb")) as con:
        con.execute("UPDATE actions SET actor = 'grace' WHERE point_id = '1'")
    assert "row 11 of actions is not what was written" in wrong(config)["chain"]


def test_a_chain_that_lacks_the_head_on_mlflow_is_wrong_be_it_cut_computed_anew_or_gone(
    config: Config, tmp_path: Path
) -> None:
    path, tracker = config.workspace / "ledger.duckdb", Tracker(config.workspace, config.name)
    ledger, older = Ledger(path), tmp_path / "older.duckdb"
    shutil.copy(path, older)
    run = str(tracker.run_of(2))
    tracker.anchor(run, ledger.head())
    ledger.record_event(3, "failed", key="later")  # as a process does that is killed before it tells MLflow
    said = next(one.text for one in examine(config) if one.name == "chain")
    assert said.endswith("has the head that cycle 2 left on MLflow")
    tracker.anchor(run, ledger.head())
    assert not wrong(config)

    shutil.copy(older, path)
    found = wrong(config)
    assert list(found) == ["chain"]
    assert f"cycle 2 left on MLflow is no link of the ledger {path}" in found["chain"]
    assert f"delete the tag tamis.ledger_head of run {run}" in found["chain"]
    path.unlink()
    assert "cycle 2 left on MLflow is no link" in wrong(config)["chain"]


@pytest.mark.parametrize(
    "left",
    ["cycles/000002/.cycle.json.77.tmp", "cycles/000003/checkpoints/a/.step-000010.tmp/x", ".mlflow.db.99999999.tmp"],
)
def test_what_was_half_written_is_found(config: Config, left: str) -> None:
    path = config.workspace / left
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    found = wrong(config)
    assert list(found) == ["files"]
    assert left.removesuffix("/x") in found["files"]
    assert len(torn_files(config.workspace)) == 1


def test_a_checkpoint_without_its_manifest_was_half_written(config: Config) -> None:
    step = config.workspace / "cycles" / "000001" / "checkpoints" / "baseline-seed0" / "step-000010"
    (step / "MANIFEST.json").unlink()
    assert str(step) in wrong(config)["files"]


def test_a_cycle_that_the_ledger_does_not_know_is_found(config: Config) -> None:
    (config.workspace / "cycles" / "000004").mkdir()
    assert "cycles/000004; the ledger is older" in wrong(config)["files"]


def test_checkpoints_and_scores_that_have_changed_are_found(config: Config) -> None:
    cycle = config.workspace / "cycles" / "000001"
    tensors = cycle / "checkpoints" / "baseline-seed0" / "step-000010" / "model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"!")
    (cycle / "scores" / "part-r000-c00000.parquet").unlink()
    said = wrong(config)["models"]
    assert "model.safetensors has changed" in said
    assert "part-r000-c00000.parquet missing" in said


def test_a_run_that_nothing_will_end_is_found_and_that_of_the_open_cycle_is_not(config: Config) -> None:
    client = MlflowClient(f"sqlite:///{config.workspace / 'mlflow.db'}")
    run = json.loads((config.workspace / "cycles" / "000001" / "cycle.json").read_text())["mlflow_run"]
    client.update_run(run, status="RUNNING")
    assert wrong(config)["runs"].startswith(
        f"1 seem to go on in MLflow, and nothing will end them: cycle 1 ({run[:8]})"
    )


def test_what_vanishes_while_it_is_looked_at_keeps_nothing_else_from_being_looked_at(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(_: Path) -> int:
        raise FileNotFoundError(2, "No such file or directory", "step-000010")

    monkeypatch.setattr("flows.diagnosis.records.size_of", gone)
    said = wrong(config)
    assert list(said) == ["disk"]
    assert "step-000010" in said["disk"]


def test_an_mlflow_server_that_ends_meanwhile_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (port,) = free_ports(1)
    with pytest.raises(ServerUnusable, match=r"does not answer: start it or correct servers\.mlflow"):
        unended_runs(f"http://127.0.0.1:{port}", "digits", [], "")


def test_room_for_less_than_a_cycle_is_wrong(config: Config) -> None:
    (config.workspace / "forecast.json").write_text(json.dumps({"forecast": {"disk": 1e18}}))
    assert "`tamis check` foretold 1,000,000,000.0 GB: free space" in wrong(config)["disk"]
