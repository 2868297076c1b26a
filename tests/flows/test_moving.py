"""Data that move between cycles: a corrected label returns to training, a vanished point is closed, exports follow."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.check import check, require
from flows.config import load
from flows.curated import CuratedDataset
from flows.errors import BadInput
from flows.export import export_file
from flows.inspection import status_of
from flows.moving import in_force, manifest_of_cycle, record_moves
from flows.opening import open_cycle
from flows.protection import check_protected, vanished
from flows.stores import ledger_of
from flows.workload import load_workload
from storage.errors import CycleConflict, StorageError
from storage.ledger import Ledger
from storage.points import Manifest, PointId, dataset_sha256
from storage.proposals import Proposal
from storage.selection import Selection
from storage.trajectory_store import TRAJECTORY
from tests.flows.helpers import run_here, turn, write_toml

ENTRY = f"{Path(__file__).with_name('moving_blobs.py')}:Moving"


@pytest.fixture(scope="module")
def moved(one_rank: None, mlflow_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Any]]:
    """A cycle that removes the 12 wrong labels; then 0 and 1 are corrected, 2 is gone, 50 is another, and a second."""
    folder = tmp_path_factory.mktemp("moved")
    (folder / "ws").mkdir()
    shutil.copy(mlflow_store, folder / "ws")
    state = folder / "state.json"
    file = write_toml(folder, ENTRY, {"state": str(state)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flows.stages.run_ranks", run_here)
        first = turn(file)
        assert (first.state, first.removed, first.moved) == ("promoted", 12, "")
        assert status_of(file).removed == 12
        state.write_text(json.dumps({"mended": [0, 1], "gone": [2], "shifted": [50]}))
        yield file, turn(file)


@pytest.mark.slow
def test_a_corrected_label_returns_to_training_and_the_cycle_says_so(moved: tuple[Path, Any]) -> None:
    file, summary = moved
    assert (summary.cycle, summary.in_train) == (2, 119 - 9)
    line = "since cycle 1: 0 new, 3 changed (2 in the label alone), 1 vanished"
    assert summary.moved == (
        f"{line}; 2 were removed, and corrected since: in training again; 1 were removed, and vanished: closed"
    )
    assert line in summary.report.read_text()
    folder = summary.report.parent
    [steps] = folder.glob(f"checkpoints/baseline-*/{TRAJECTORY}")
    trained = {point for step in pq.read_table(steps)["point_ids"].to_pylist() for point in step}
    assert {0, 1, 50} <= trained
    assert not {2, 3, 11} & trained
    ledger = ledger_of(load(file))
    [event] = [event for event in ledger.events(2) if event.state == "moved"]
    assert (event.detail["label"], event.detail["inputs"], event.detail["vanished"]) == (2, 1, 1)
    assert event.detail["decided"] == {"remove, holds no more": 3}
    rows = pq.read_table(folder / "moved.parquet").to_pylist()
    assert [(row["point_id"], row["change"]) for row in rows] == [
        (0, "label"),
        (1, "label"),
        (2, "vanished"),
        (50, "inputs"),
    ]
    assert status_of(file).removed == 9, "what vanished or was corrected does not stand as removed"
    assert dataset_sha256(Manifest.read(folder / "manifest.parquet"), range(3, 12)) == ledger.cycle(2).dataset_sha256


@pytest.mark.slow
def test_an_export_is_the_data_set_that_the_ledger_recorded(moved: tuple[Path, Any], tmp_path: Path) -> None:
    file, summary = moved
    ledger, points = ledger_of(load(file)), load_workload(load(file)).points()
    whole = export_file(file, 0, tmp_path / "0", text=False).export
    assert (whole.dataset_sha256, whole.recorded_by) == (ledger.cycle(1).dataset_sha256, 1)
    left = export_file(file, 1, tmp_path / "1", text=False).export
    assert (left.cycle, left.kept, left.removed, left.recorded_by) == (1, 108, 12, None)
    newest = export_file(file, None, tmp_path / "newest", text=False).export
    assert (newest.cycle, newest.recorded_by, newest.kept) == (2, None, 110 - summary.removed)
    assert len(CuratedDataset(points, tmp_path / "newest")) == newest.kept
    with pytest.raises(BadInput, match=r"--as-of 3: 2 cycles have ended in .*: give 0 to 2"):
        export_file(file, 3, tmp_path / "3", text=False)


CONTENT: dict[PointId, str] = {row: f"c{row}" for row in range(6)}


def manifest(content: dict[PointId, str], group: str | None = None) -> Manifest:
    return Manifest.build(content, content.values(), content.values(), [0] * len(content), [group] * len(content))


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """Cycle 1 on six points; 0 and 1 are removed, 2 and 3 relabelled as 7."""
    ledger, whole = Ledger(tmp_path / "l.duckdb"), manifest(CONTENT)
    ledger.open_cycle(1, dataset_sha256(whole), {}, {}, "int")
    whole.write(manifest_of_cycle(tmp_path, 1))
    rows = pa.table(
        {
            "point_id": [0, 1, 2, 3],
            "action": ["remove", "remove", "relabel", "relabel"],
            "new_label": pa.array([None, None, 7, 7], pa.int32()),
            "reason": ["mislabeled"] * 4,
            "score": [0.1] * 4,
            "threshold": [0.2] * 4,
        }
    )
    proposal = Proposal.build(1, Selection(rows, {"mislabeled": 4}, {}, 6, 6, 4), dataset_sha256(whole), "0" * 64, {})
    ledger.add_proposal(proposal)
    ledger.add_review(proposal.hash, "approve", "ada", "cli")
    ledger.apply_proposal(1, proposal.hash, whole, "e", "d")
    ledger.record_event(1, "promoted")
    return ledger


def opened(ledger: Ledger, folder: Path, cycle: int, content: dict[PointId, str], group: str | None = None) -> str:
    """Open a cycle on the data as they are; what it says moved."""
    train = manifest(content, group)
    known = in_force(ledger, cycle - 1, train)
    ledger.open_cycle(cycle, dataset_sha256(train, known.removed, known.relabeled), {}, {}, "int", parent=cycle - 1)
    train.write(manifest_of_cycle(folder, cycle))
    said = record_moves(ledger, folder, cycle, train)
    assert record_moves(ledger, folder, cycle, train) == said, "a cycle that is continued says it again"
    ledger.record_event(cycle, "nothing_to_do")
    return said


def test_an_export_as_of_a_cycle_stays_what_it_was_when_the_data_move_afterwards(
    ledger: Ledger, tmp_path: Path
) -> None:
    file = write_toml(tmp_path, workspace=".")
    ledger = Ledger(ledger.path.rename(ledger_of(load(file)).path))
    before = export_file(file, 1, tmp_path / "before", text=False).export
    assert (before.points, before.kept, before.removed, before.relabeled) == (6, 4, 2, 2)
    assert opened(ledger, tmp_path, 2, CONTENT | {0: "mended", 9: "new"})
    assert export_file(file, 1, tmp_path / "after", text=False).export == before
    assert export_file(file, 2, tmp_path / "newest", text=False).export.points == 7
    manifest(CONTENT | {4: "another"}).write(manifest_of_cycle(tmp_path, 1))
    with pytest.raises(StorageError, match="cycle 1 started from"):
        export_file(file, 1, tmp_path / "tampered", text=False)
    assert not (tmp_path / "tampered").exists()


def test_the_newest_export_is_of_the_manifest_that_its_cycle_started_from(ledger: Ledger, tmp_path: Path) -> None:
    file = write_toml(tmp_path, workspace=".")
    ledger = Ledger(ledger.path.rename(ledger_of(load(file)).path))
    for cycle, content in ((1, CONTENT), (2, CONTENT | {0: "mended"})):
        if cycle > 1:
            assert opened(ledger, tmp_path, cycle, content)
        assert export_file(file, None, tmp_path / f"out-{cycle}", text=False).export.cycle == cycle
        manifest(content | {4: "another"}).write(manifest_of_cycle(tmp_path, cycle))
        with pytest.raises(StorageError, match=f"cycle {cycle} started from"):
            export_file(file, None, tmp_path / "tampered", text=False)
        assert not (tmp_path / "tampered").exists()
        manifest(content).write(manifest_of_cycle(tmp_path, cycle))


def test_a_change_of_groups_alone_is_said_and_leaves_the_export_of_the_cycle_before(
    ledger: Ledger, tmp_path: Path
) -> None:
    file = write_toml(tmp_path, workspace=".")
    ledger = Ledger(ledger.path.rename(ledger_of(load(file)).path))
    before = export_file(file, 1, tmp_path / "before", text=False).export
    said = opened(ledger, tmp_path, 2, CONTENT, "clinic")
    assert said == "since cycle 1: 0 new, 0 changed (0 in the label alone), 0 vanished, 6 in another group"
    assert opened(ledger, tmp_path, 3, CONTENT, "clinic") == ""
    assert export_file(file, 1, tmp_path / "after", text=False).export == before
    assert export_file(file, 2, tmp_path / "2", text=False).export.recorded_by == 3
    assert in_force(ledger, 2, manifest(CONTENT, "clinic")).removed == {0, 1}


def test_an_export_is_not_held_against_data_that_nobody_could_compare(ledger: Ledger, tmp_path: Path) -> None:
    file = write_toml(tmp_path, workspace=".")
    ledger = Ledger(ledger.path.rename(ledger_of(load(file)).path))
    kept = manifest_of_cycle(tmp_path, 1).rename(tmp_path / "kept.parquet")
    assert "not known" in opened(ledger, tmp_path, 2, CONTENT | {9: "new"})
    [event] = [event for event in ledger.events(2) if event.state == "moved"]
    assert event.detail == {"unknown": "the manifest of cycle 1 is gone"}
    kept.rename(manifest_of_cycle(tmp_path, 1))
    assert export_file(file, 1, tmp_path / "out", text=False).export.points == 6


def test_what_is_in_force_tells_which_decisions_it_has_seen(ledger: Ledger) -> None:
    found = in_force(ledger, 1, manifest(CONTENT))
    assert found.decided == ledger.newest_action(1) > 0
    ledger.restore([0], "bob", "was right")
    assert in_force(ledger, 1, manifest(CONTENT)).decided > found.decided
    assert in_force(ledger, 0, manifest(CONTENT)).decided == 0


class Meanwhile:
    """A tracker during whose first answer somebody restores points."""

    def __init__(self, ledger: Ledger, points: list[PointId]) -> None:
        self.ledger, self.points = ledger, points

    def champion(self, name: str) -> None:
        return None

    def is_anothers(self) -> bool:
        return False

    def cycle_run(self, *_: object) -> str:
        if self.points:
            self.ledger.restore(self.points, "bob", "was right")
            self.points = []
        return "run"

    def log_dataset(self, *_: object) -> None:
        pass


def test_a_restoration_while_a_cycle_is_being_opened_is_in_its_data_after_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load(write_toml(tmp_path))
    workload, ledger = load_workload(config), ledger_of(config)
    tracker = Meanwhile(ledger, [])
    monkeypatch.setattr("flows.opening.tracker_of", lambda _: tracker)
    config.workspace.mkdir()
    first = open_cycle(config, workload, lambda _: None)
    removed_two(ledger, first.manifest)
    tracker.points = [1]
    with pytest.raises(CycleConflict, match="decisions changed while cycle 2 was being opened; run again"):
        open_cycle(config, workload, lambda _: None)
    second = open_cycle(config, workload, lambda _: None)
    assert (second.number, second.removed) == (2, {0})
    assert ledger.cycle(2).dataset_sha256 == dataset_sha256(first.manifest, [0])


def test_protected_points_and_groups_that_vanished_are_said_and_stop_no_cycle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "state.json"
    file = write_toml(tmp_path, ENTRY, {"state": str(state)}, pruning={"protected": [2, 3], "protected_file": "ids"})
    (tmp_path / "ids").write_text("50\n")
    config = load(file)
    monkeypatch.setattr("flows.opening.tracker_of", lambda _: Meanwhile(ledger_of(config), []))
    config.workspace.mkdir()
    assert open_cycle(config, load_workload(config), lambda _: None).moved == ""
    ledger_of(config).record_event(1, "nothing_to_do")
    state.write_text(json.dumps({"gone": [2, 50]}))
    workload = load_workload(config)
    said = "no longer hold 2 protected ids (2, 50)"
    [sets] = [finding for finding in check(config) if finding.name == "sets"]
    assert (sets.ok, sets.text.endswith(f"; the data {said}")) == (True, True)
    assert open_cycle(config, workload, lambda _: None).moved.endswith(f", 2 vanished; {said}")
    ledger_of(config).record_event(2, "nothing_to_do")
    third = open_cycle(config, workload, lambda _: None)
    assert (third.number, third.moved) == (3, said), "it is said as long as they are protected"
    (tmp_path / "ids").write_text("50\n120\n")
    with pytest.raises(BadInput, match=r"ids: \['120'\] not in the train set of this or an earlier cycle"):
        require(config)


def test_a_group_that_was_there_once_may_vanish_and_one_that_never_was_may_not(tmp_path: Path) -> None:
    config = load(write_toml(tmp_path, pruning={"protected_groups": ["clinic"]}))
    now = manifest(CONTENT, "home")
    with pytest.raises(BadInput, match=r"protected_groups: \['clinic'\]: no point"):
        check_protected(config.pruning, now, tmp_path)
    manifest(CONTENT, "clinic").write(manifest_of_cycle(tmp_path, 1))
    now.write(manifest_of_cycle(tmp_path, 2))
    check_protected(config.pruning, now, tmp_path)
    assert vanished(config.pruning, now) == "no longer hold 1 protected group (clinic)"


def removed_two(ledger: Ledger, train: Manifest) -> None:
    rows = {"point_id": [0, 1], "action": ["remove"] * 2, "new_label": pa.array([None] * 2, pa.int32())}
    rows |= {"reason": ["harmful"] * 2, "score": [0.1] * 2, "threshold": [0.2] * 2}
    made = Proposal(1, pa.table(rows), "d", "s", {})
    ledger.add_proposal(made)
    ledger.add_review(made.hash, "approve", "ada", "cli")
    ledger.apply_proposal(1, made.hash, train, "e", "d")
    ledger.record_event(1, "promoted")


def test_decisions_end_and_come_back_with_the_content_they_were_taken_on(ledger: Ledger, tmp_path: Path) -> None:
    found = in_force(ledger, 1, manifest(CONTENT))
    assert (found.removed, found.relabeled) == (frozenset([0, 1]), {2: 7, 3: 7})
    moved = {**CONTENT, 2: "corrected"}
    del moved[1]
    del moved[3]
    found = in_force(ledger, 1, manifest(moved))
    assert (found.removed, found.relabeled) == (frozenset([0]), {})
    said = opened(ledger, tmp_path, 2, moved)
    assert said == (
        "since cycle 1: 0 new, 1 changed (0 in the label alone), 2 vanished; 1 were removed, and vanished: closed; "
        "1 were relabelled, and changed since: as given; 1 were relabelled, and vanished: closed"
    )
    assert opened(ledger, tmp_path, 3, moved) == ""
    said = opened(ledger, tmp_path, 4, CONTENT)
    assert "1 were removed, and came back as they were: removed again" in said
    assert "2 were relabelled, and came back as they were: relabelled" in said
    found = in_force(ledger, 4, manifest(CONTENT))
    assert (found.removed, found.relabeled) == (frozenset([0, 1]), {2: 7, 3: 7})
    states = [(event.cycle, event.state) for cycle in (2, 3, 4) for event in ledger.events(cycle)]
    assert [cycle for cycle, state in states if state == "moved"] == [2, 4]


def test_a_manifest_that_is_gone_is_said_and_stops_nothing(ledger: Ledger, tmp_path: Path) -> None:
    manifest_of_cycle(tmp_path, 1).unlink()
    assert "not known" in opened(ledger, tmp_path, 2, CONTENT)
    assert opened(ledger, tmp_path, 3, CONTENT) == ""
