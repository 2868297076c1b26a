"""`tamis gc` and `[retention]`: room is made, and what explains a removal stays."""

import json
import logging
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from mlflow import MlflowClient
from typer.testing import CliRunner

from flows.cli import app
from flows.conclusion import Concluded, close
from flows.config import load
from flows.errors import BadInput
from flows.inspection import open_ledger
from flows.retention import collect, outdated
from flows.stages import cycle_folder
from flows.workload import load_workload
from storage.ledger import Ledger
from storage.score_store import MANIFEST
from storage.tracking import Tracker
from tests.flows.helpers import write_toml
from tests.flows.texts import LENGTH, save_bert, sentences, write_rows
from tests.storage.ledgers import applied, opened, proposal, removed

NO_PID = 2**22 + 1
"""More than Linux gives out."""
SCORED = ("scores", "logs", "plans")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, mlflow_store: Path) -> Path:
    """Six cycles: 1 removed points that stand, 2 one that was restored since, 3 was rolled back, others did nothing."""
    file = write_toml(tmp_path_factory.mktemp("retention") / "project", retention={"cycles": 2})
    config = load(file)
    config.workspace.mkdir()
    shutil.copy(mlflow_store, config.workspace)
    ledger, tracker = Ledger(config.workspace / "ledger.duckdb"), Tracker(config.workspace, config.name)
    removed(ledger, 1, [1, 2])
    ledger.record_event(1, "promoted")
    removed(ledger, 2, [3])
    ledger.restore([3], "grace", "it is right")
    ledger.record_event(2, "promoted")
    removed(ledger, 3, [4])
    ledger.roll_back(3, "rule:guardrail", "no proof")
    for cycle in (4, 5, 6):
        opened(ledger, cycle)
        ledger.record_event(cycle, "nothing_to_do")
    for cycle in range(1, 7):
        folder = config.workspace / "cycles" / f"{cycle:06d}"
        run = tracker.cycle_run(cycle, "data", {})
        tracker.finish(run)
        copy = config.workspace / "mlartifacts" / run / "artifacts"
        for path in (*(folder / name / "part" for name in SCORED), copy / "scores" / "part", copy / "review" / "page"):
            path.parent.mkdir(parents=True)
            path.write_bytes(bytes(1000))
        (folder / "scores" / MANIFEST).write_text("{}")
        (folder / "manifest.parquet").write_bytes(bytes(10))
        (folder / "cycle.json").write_text(json.dumps({"mlflow_run": run}))
    return file.parent


@pytest.fixture
def file(project: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(project, tmp_path / "project")) / "tamis.toml"


def cycles_with(file: Path, name: str) -> list[int]:
    return [int(path.parent.name) for path in sorted((file.parent / "ws" / "cycles").glob(f"*/{name}"))]


def copies(file: Path) -> int:
    return len(list((file.parent / "ws" / "mlartifacts").glob("*/artifacts/scores")))


def test_a_dry_run_says_what_would_go_with_its_bytes_and_removes_nothing(file: Path) -> None:
    before = sorted((file.parent / "ws").rglob("*"))
    done = CliRunner().invoke(app, ["gc", str(file), "--dry-run", "--json"])
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert {Path(one["path"]).name for one in found["gone"]} == {*SCORED}
    assert sum(one["bytes"] for one in found["gone"]) == 4 * 3 * 1000 + 3 * 1002
    assert sorted(path for path in (file.parent / "ws").rglob("*") if path.name != ".lock") == before


def test_of_older_cycles_scores_logs_and_plans_go_and_the_scores_that_a_standing_removal_rests_on_stay(
    file: Path,
) -> None:
    collect(file)
    assert cycles_with(file, "scores") == [1, 5, 6]
    assert cycles_with(file, "logs") == cycles_with(file, "plans") == [5, 6]
    assert copies(file) == 2
    assert cycles_with(file, "manifest.parquet") == cycles_with(file, "cycle.json") == [1, 2, 3, 4, 5, 6]
    assert len(list((file.parent / "ws" / "mlartifacts").glob("*/artifacts/review/page"))) == 6


def test_a_second_time_there_is_nothing_to_remove(file: Path) -> None:
    assert collect(file).gone
    assert not collect(file).gone


def end(file: Path, number: int) -> list[str]:
    """End a cycle in which nothing was done; returns what it showed."""
    config, ledger, shown = load(file), open_ledger(file), list[str]()
    opened(ledger, number)
    cycle: Any = SimpleNamespace(
        config=config,
        ledger=ledger,
        tracker=SimpleNamespace(anchor=lambda *_: None),
        number=number,
        run="run",
        folder=cycle_folder(config, number),
        show=lambda progress: shown.append(progress.phase),
    )
    verdict: Any = SimpleNamespace(promote=None)
    close(cycle, verdict, Concluded("nothing_to_do", "no point is a candidate", None, None))
    return shown


def test_the_end_of_a_cycle_makes_the_room(file: Path) -> None:
    assert end(file, 7) == []
    assert cycles_with(file, "scores") == [1, 6]
    assert cycles_with(file, "logs") == [6]


def test_files_that_cannot_be_removed_do_not_fail_the_cycle_that_has_ended_and_go_the_next_time(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("tamis"), "propagate", True)
    with monkeypatch.context() as refused:
        refused.setattr("flows.retention.remove", Mock(side_effect=PermissionError(13, "Permission denied")))
        [shown] = end(file, 7)
    assert "Permission denied" in shown
    assert "the next cycle or `tamis gc` removes them" in caplog.text
    assert open_ledger(file).state(7) == "nothing_to_do"
    collect(file)
    assert cycles_with(file, "logs") == [6]
    assert list((file.parent / "ws" / "cycles").glob("*/.*.tmp")) == []


def test_the_ledger_is_asked_for_no_cycle_that_has_nothing_left(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collect(file)
    state, asked = Ledger.state, list[int]()
    monkeypatch.setattr(Ledger, "state", lambda ledger, cycle: asked.append(cycle) or state(ledger, cycle))
    outdated(load(file))
    assert asked == [1], "of which the scores stay"


def test_a_copy_of_scores_that_was_being_removed_goes(file: Path) -> None:
    [*_, newest] = sorted((file.parent / "ws" / "cycles").glob("*/cycle.json"))[:4]
    artifacts = file.parent / "ws" / "mlartifacts" / json.loads(newest.read_text())["mlflow_run"] / "artifacts"
    shutil.copytree(artifacts / "scores", artifacts / ".scores.tmp")
    collect(file)
    assert [path.name for path in artifacts.iterdir()] == ["review"]


def test_a_removal_that_is_made_again_by_a_roll_back_keeps_the_scores_of_its_first_time(file: Path) -> None:
    ledger = open_ledger(file)
    opened(ledger, 7)
    applied(ledger, proposal(7, [1, 2], action="restore"))
    ledger.roll_back(7, "rule:guardrail", "no proof")
    assert ledger.removed_as_of() == {1, 2}
    assert {1, 7} <= ledger.cited_cycles()
    collect(file)
    assert 1 in cycles_with(file, "scores")


def test_without_the_key_nothing_is_old(file: Path) -> None:
    file.write_text(file.read_text().replace("cycles = 2", "cycles = 0"))
    assert outdated(load(file)) == []


def test_the_newest_scores_stay_however_old_they_are(file: Path) -> None:
    for cycle in (5, 6):
        shutil.rmtree(file.parent / "ws" / "cycles" / f"{cycle:06d}" / "scores")
    collect(file)
    assert cycles_with(file, "scores") == [1, 4]


def test_one_cycle_is_too_few_since_a_cycle_reads_the_scores_of_the_one_before(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"retention.cycles = 1: a cycle reads the scores .* at least 2, or 0"):
        load(write_toml(tmp_path, retention={"cycles": 1}))


def test_models_of_a_validation_before_the_oldest_cycle_that_is_kept_go(file: Path) -> None:
    models = file.parent / "ws" / "validation" / "models"
    models.mkdir(parents=True)
    for name, age in (("old", 1e6), ("new", -10)):
        (models / name).touch()
        began = (file.parent / "ws" / "cycles" / "000005" / "cycle.json").stat().st_mtime
        os.utime(models / name, (began - age, began - age))
    collect(file)
    assert [path.name for path in models.iterdir()] == ["new"]


def test_what_killed_processes_have_left_goes_and_their_runs_end(file: Path) -> None:
    workspace = file.parent / "ws"
    torn = workspace / "cycles" / "000006" / "checkpoints" / "baseline-seed0" / ".step-000010.tmp"
    torn.mkdir(parents=True)
    dead, alive = workspace / f".mlflow.db.{NO_PID}.tmp", workspace / f".ledger.duckdb.new-{os.getpid()}"
    old, new = workspace / ".ledger.duckdb.import", workspace / ".ledger.duckdb.import.wal"
    for path in (dead, alive, old, new):
        path.touch()
    os.utime(old, (0, 0))
    client = MlflowClient(f"sqlite:///{workspace / 'mlflow.db'}")
    run = json.loads((workspace / "cycles" / "000002" / "cycle.json").read_text())["mlflow_run"]
    client.update_run(run, status="RUNNING")
    collected = collect(file)
    gone = {one.path for one in collected.gone}
    assert {dead, old, torn} <= gone
    assert not {alive, new} & gone, "they may be of a command on the ledger that is at work"
    assert collected.runs == ("cycle 2",)
    assert not torn.exists()
    assert client.get_run(run).info.status == "FAILED"


def texts_project(folder: Path, **options: Any) -> Path:
    given = {"data": "texts.parquet", "model": "bert", "head": "mean", "train_layers": 2, "max_length": LENGTH}
    return write_toml(folder, "text_classification", given | {"id": "id"} | options)


def test_of_a_workloads_cache_what_its_options_use_stays_and_the_rest_goes_with_its_bytes(tmp_path: Path) -> None:
    save_bert(tmp_path / "bert")
    write_rows(tmp_path / "texts.parquet", sentences(60))
    cache = tmp_path / "ws" / "cache"
    for layers in (1, 2):
        workload: Any = load_workload(load(texts_project(tmp_path, train_layers=layers)))
        workload.features(workload.points().batch_of(torch.arange(2)))
    assert len(list(cache.glob("frozen-*"))) == 2
    used = {path.name for path in workload.cached()}
    file = tmp_path / "tamis.toml"
    found = collect(file, dry_run=True).gone
    assert {path.name for path in cache.iterdir()} == used | {one.path.name for one in found}
    assert [(one.path.name[:7], one.bytes > 1000) for one in found] == [("frozen-", True)]
    collect(file)
    assert {path.name for path in cache.iterdir()} == used


def test_a_cache_of_a_workload_that_does_not_say_what_it_uses_is_its_own(tmp_path: Path) -> None:
    file = write_toml(tmp_path)
    kept = tmp_path / "ws" / "cache" / "mine"
    kept.mkdir(parents=True)
    assert collect(file).gone == ()
    assert kept.is_dir()


def test_where_the_workload_does_not_load_nothing_goes(tmp_path: Path) -> None:
    file = texts_project(tmp_path)
    kept = tmp_path / "ws" / "cache" / "texts-0.parquet"
    kept.parent.mkdir(parents=True)
    kept.touch()
    with pytest.raises(BadInput, match="bert"):
        collect(file)
    assert kept.exists()
