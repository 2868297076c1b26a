"""MLflow on a real sqlite store, in a workspace whose path has a space, and on a real server with PostgreSQL and S3.

Whatever is written is found again, never written twice.
"""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from mlflow import MlflowClient

from storage import checkpoints, score_store
from storage.errors import StorageError
from storage.tracking import Tracker, check_name
from storage.tracking_health import unended_runs


@pytest.fixture(scope="module", params=["file", pytest.param("server", marks=pytest.mark.service)])
def tracker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    workspace = tmp_path_factory.mktemp("a workspace") / "with spaces"
    if request.param == "file":
        return Tracker(workspace, "digits")
    server = request.getfixturevalue("mlflow_server")
    return Tracker(workspace, "digits", f"http://127.0.0.1:{server.port}")


@pytest.fixture(scope="module")
def client(tracker: Tracker) -> MlflowClient:
    return MlflowClient(tracker.uri)


def again(tracker: Tracker, experiment: str) -> Tracker:
    return Tracker(tracker.workspace, experiment, tracker.uri if tracker.store.server else "")


def artifact(client: MlflowClient, tracker: Tracker, run: str, name: str) -> Path:
    return Path(client.download_artifacts(run, name))


def checkpoint(folder: Path, value: float) -> checkpoints.Checkpoint:
    temporary = checkpoints.begin(folder, 1)
    checkpoints.write_tensors(temporary, {"w": np.full(3, value)})
    return checkpoints.commit(temporary, checkpoints.Metadata("baseline", 0, 1, "m", 1))


def test_workspaces_that_share_a_server_do_not_take_over_each_others_runs(tracker: Tracker) -> None:
    uri = tracker.uri if tracker.store.server else ""
    first, second = (Tracker(tracker.workspace, "shared", uri, identity) for identity in ("first", "second"))
    assert not first.is_anothers()
    run = first.cycle_run(1, "a", {})
    assert (first.run_of(1), second.run_of(1)) == (run, None)
    assert second.cycle_run(1, "a", {}) != run
    assert first.validation_run("lds", "b", {}) != second.validation_run("lds", "b", {})
    assert (first.is_anothers(), second.is_anothers()) == (False, True)
    left = [unended_runs(tracker.uri, "shared", ["1"], identity) for identity in ("first", "second", "third")]
    assert [len(runs) for runs in left] == [1, 1, 0], "the validations"


def test_the_runs_of_a_cycle_are_found_again_not_made_twice(tracker: Tracker, client: MlflowClient) -> None:
    runs = {tracker.cycle_run(7, "a" * 64, {"q": 0.2}) for _ in range(2)}
    (run,) = runs
    for _ in range(2):
        arm = tracker.arm_run(run, "baseline", 0, {"steps": 10}, {"loss": 0.5})
    assert tracker.arm_run(run, "baseline", 1, {}, {}) != arm
    data = client.get_run(run).data
    assert (data.tags["tamis.cycle"], data.tags["tamis.dataset_sha256"], data.params["q"]) == ("7", "a" * 64, "0.2")
    nested = client.get_run(arm)
    assert nested.data.tags["mlflow.parentRunId"] == run
    assert nested.info.status == "FINISHED"
    assert len(client.get_metric_history(arm, "loss")) == 1


def test_a_setting_edited_while_the_cycle_is_open_is_shown_beside_the_first(
    tracker: Tracker, client: MlflowClient
) -> None:
    run = tracker.cycle_run(16, "a", {"q": 0.2, "seed": 0})
    assert tracker.cycle_run(16, "b", {"q": 0.1, "seed": 0, "new": 1}) == run
    data = client.get_run(run).data
    assert data.params == {"q": "0.2", "seed": "0", "new": "1"}
    assert (data.tags["tamis.changed"], data.tags["tamis.dataset_sha256"]) == ('{"q": "0.1"}', "b")


def test_a_second_tracker_finds_the_same_experiment(tracker: Tracker) -> None:
    run = tracker.cycle_run(8, "a", {})
    assert again(tracker, "digits").cycle_run(8, "a", {}) == run
    assert again(tracker, "another").cycle_run(8, "a", {}) != run


def test_what_a_reviewer_reads_is_on_the_run(tracker: Tracker, client: MlflowClient, tmp_path: Path) -> None:
    run = tracker.cycle_run(9, "a" * 64, {})
    table = pa.table({"point_id": [2, 1], "suspicion": [0.9, 0.8], "top_queries": [[{"query_id": 1}], []]})
    for _ in range(2):
        tracker.log_dataset(run, "digits", "a" * 64, 10, "points.parquet")
        tracker.log_table(run, "suspicious", table)
        tracker.log_table(run, "slices", table.slice(1))
        tracker.log_figure(run, "influence", b"png")
        tracker.log_report(run, "<p>é</p>")
        tracker.describe(run, "# Cycle 9")
    got = json.loads(artifact(client, tracker, run, "review/suspicious.json").read_text())
    assert got["columns"] == ["point_id", "suspicion", "top_queries"]
    assert got["data"] == [[2, 0.9, '[{"query_id": 1}]'], [1, 0.8, "[]"]]
    assert artifact(client, tracker, run, "review/influence.png").read_bytes() == b"png"
    assert artifact(client, tracker, run, "review/00_report.html").read_text() == "<p>é</p>"
    found = client.get_run(run)
    assert found.data.tags["mlflow.note.content"] == "# Cycle 9"
    assert json.loads(found.data.tags["mlflow.loggedArtifacts"]) == [
        {"path": f"review/{name}.json", "type": "table"} for name in ("suspicious", "slices")
    ]
    (given,) = found.inputs.dataset_inputs
    assert given.dataset.digest == "a" * 12
    assert {tag.key: tag.value for tag in given.tags}["tamis.dataset_sha256"] == "a" * 64


def test_score_shards_arrive_whole(tracker: Tracker, client: MlflowClient, tmp_path: Path) -> None:
    columns = {name: [1.0] for name in score_store.REQUIRED} | {"point_id": [1], "cycle": [1], "in_train": [True]}
    score_store.write_chunk(tmp_path, 0, 0, pa.table(columns), score_store.ScoreMetadata(1, "e", [], None, "c", "i"))
    scores, run = score_store.finish(tmp_path, 1), tracker.cycle_run(10, "a", {})
    tracker.log_scores(run, scores)
    copied = score_store.load(artifact(client, tracker, run, "scores"))
    assert copied is not None
    assert copied.sha256 == scores.sha256


def test_the_champion_is_a_registered_version_that_reads_without_pickle(tracker: Tracker, tmp_path: Path) -> None:
    run = tracker.cycle_run(13, "a", {})
    assert tracker.champion("digits") is None
    first, second = checkpoint(tmp_path / "1", 1.0), checkpoint(tmp_path / "2", 2.0)
    one = tracker.register(run, first, "digits")
    assert tracker.register(run, first, "digits") == one
    assert tracker.champion("digits") is None
    tracker.set_champion(one)
    assert tracker.champion("digits") == one
    two = tracker.register(tracker.cycle_run(14, "a", {}), second, "digits")
    assert (two.version, two.digest) == (2, second.digest)
    tracker.set_champion(two)
    tracker.set_champion(two)
    assert tracker.champion("digits") == two
    np.testing.assert_array_equal(checkpoints.read_tensors(tracker.weights(two))["w"], np.full(3, 2.0))
    assert checkpoints.verify(tracker.weights(one)).digest == first.digest


def test_two_checkpoints_of_one_cycle_are_two_versions_that_both_stay(tracker: Tracker, tmp_path: Path) -> None:
    run = tracker.cycle_run(17, "a", {})
    saved = [checkpoint(tmp_path / name, value) for name, value in (("1", 1.0), ("2", 2.0))]
    versions = [tracker.register(run, each, "twice") for each in saved]
    for each, version in zip(saved, versions, strict=True):
        assert checkpoints.verify(tracker.weights(version)).digest == each.digest == version.digest


def test_the_newest_value_of_a_metric_is_shown_whether_it_rose_or_fell(tracker: Tracker, client: MlflowClient) -> None:
    run = tracker.cycle_run(18, "a", {})
    for value in (50.0, 30.0, 30.0, 40.0, 20.0):
        tracker.log_metrics(run, {"proposed": value, "points": 60.0})
        assert client.get_run(run).data.metrics == {"proposed": value, "points": 60.0}
    assert [point.value for point in client.get_metric_history(run, "proposed")] == [50.0, 30.0, 40.0, 20.0]
    assert len(client.get_metric_history(run, "points")) == 1


@pytest.mark.parametrize("name", ["a/b", "a:b", "it's", "", " ", "-a", ".", "a\n", 'a"b', "a`b", "100%"])
def test_a_name_that_cannot_name_a_model_is_refused_before_anything_is_made(tmp_path: Path, name: str) -> None:
    with pytest.raises(StorageError, match="letters, digits, spaces"):
        Tracker(tmp_path / "ws", name)
    assert not (tmp_path / "ws").exists()


def test_every_allowed_name_names_a_model(tracker: Tracker, tmp_path: Path) -> None:
    saved, run = checkpoint(tmp_path, 1.0), tracker.cycle_run(19, "a", {})
    for name in ("Digits", "my data-2.1_b", "_x", "Ünïcode", "7"):
        check_name(name)
        tracker.set_champion(tracker.register(run, saved, name))
        assert tracker.champion(name) is not None


def test_a_run_keeps_few_metrics_and_few_rows(tracker: Tracker) -> None:
    run = tracker.cycle_run(15, "a", {})
    tracker.log_metrics(run, {f"m{i}": 0.0 for i in range(15)})
    with pytest.raises(StorageError, match="16 metrics"):
        tracker.log_metrics(run, {"one more": 0.0})
    with pytest.raises(StorageError, match="give the first 1000"):
        tracker.log_table(run, "suspicious", pa.table({"point_id": range(1001)}))


def test_a_workspace_that_mlflow_cannot_open_is_one_line_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for workspace in (tmp_path / "file", tmp_path / "100% data"):
        with pytest.raises(StorageError, match=r"cannot open") as error:
            Tracker(workspace, "digits")
        assert "\n" not in str(error.value)
