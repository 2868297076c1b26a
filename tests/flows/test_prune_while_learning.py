"""Points that leave a training between epochs: for it alone, within the budgets, on any ranks and after any kill."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from flows.config import load
from flows.errors import BadInput
from flows.plans import Job, TrainPlan
from flows.ranks.order import Order
from flows.ranks.room import Room
from flows.stores import ledger_of
from flows.training import write_ids
from flows.workload import load_workload
from influence.errors import InfluenceError
from storage import drop_store, score_store
from storage.drop_store import DROPPED
from storage.files import read_json, sha256_file
from storage.points import Manifest
from storage.proposals import Proposal
from storage.trajectory_store import TRAJECTORY
from tests.flows.blobs import Cloud
from tests.flows.helpers import BLOBS, launch, turn, write_toml
from tests.flows.test_ranks import train_digest
from tests.flows.test_training_resume import NOISY, here, killed_here, left

STEPS = 24  # 6 epochs of 4 steps: 120 points in batches of 30
DROPS = {"from_epoch": 1, "every": 1, "fraction": 0.05, "cap": 0.1}
WRONG = set(range(12))


def plan(
    folder: Path,
    *models: str,
    entry: str = BLOBS,
    options: Mapping[str, Any] | None = None,
    pruning: Mapping[str, Any] | None = None,
    removed: tuple[int, ...] = (),
    drops: Mapping[str, Any] = DROPS,
    **training: Any,
) -> TrainPlan:
    keys = {"batch_size": 30, "epochs": 6, "learning_rate": 0.05, "prune_while_learning": dict(drops)}
    config = load(write_toml(folder, entry, options, pruning=pruning or {}, training=keys | training))
    points = load_workload(config).points()
    manifest = Manifest.build(points.ids, map(str, points.ids), map(str, points.ids), points.labels)
    jobs = [
        Job(
            role="baseline",
            seed=3,
            steps=STEPS,
            planned=STEPS,
            folder=folder / name,
            save_at=(STEPS // 2, STEPS),
            removed=write_ids(folder / "removed.parquet", removed, manifest),
        )
        for name in models
    ]
    return TrainPlan(config=config, logs=folder / "logs", train_digest=train_digest(config), jobs=tuple(jobs))


def dropped(folder: Path) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = pq.read_table(folder / DROPPED).to_pydict()
    return found


def test_the_wrong_labels_go_within_the_cap_and_the_steps_stay_the_same(one_rank: None, tmp_path: Path) -> None:
    here(plan(tmp_path, "model"))
    found = dropped(tmp_path / "model")
    assert len(found["point_id"]) == 12  # the cap; 12 of 120 are wrong
    assert len(WRONG & set(found["point_id"])) >= 10
    assert Counter(found["epoch"]) == {1: 6, 2: 6}  # a twentieth at a time
    assert all(mean + 1.645 * error < 0 for mean, error in zip(found["influence"], found["influence_se"]))
    steps = pq.read_table(tmp_path / "model" / TRAJECTORY)["point_ids"].to_pylist()
    assert [len(points) for points in steps] == [30] * STEPS
    for point, step in zip(found["point_id"], found["step"]):
        assert any(point in points for points in steps[:step])
        assert not any(point in points for points in steps[step:])


@pytest.mark.parametrize(
    ("pruning", "removed"),
    [
        ({"protected": [0, 1, 2, 3, 4, 5, 6, 7]}, ()),
        ({"class_budget": 0.05}, ()),
        ({"class_budget": 0.05}, tuple(range(60, 66))),  # what was removed before counts
    ],
)
def test_protected_points_stay_and_no_class_loses_more_than_its_budget(
    one_rank: None, tmp_path: Path, pruning: dict[str, Any], removed: tuple[int, ...]
) -> None:
    here(plan(tmp_path, "model", pruning=pruning, removed=removed))
    found = dropped(tmp_path / "model")["point_id"]
    assert not set(found) & {*pruning.get("protected", ()), *removed}
    labels, budget = Cloud(0, 120, 12).labels, pruning.get("class_budget", 0.5)
    given, gone = Counter(labels), Counter(labels[point] for point in (*found, *removed))
    before = Counter(labels[point] for point in removed)
    assert all(gone[label] <= max(budget * given[label], before[label]) for label in given)
    assert found


@pytest.mark.parametrize(
    ("key", "value", "dropped"),
    [
        ("cumulative_budget", 1.0, [13, 11, 12, 10, 5]),  # nothing bounds these five
        ("cumulative_budget", 0.1, [13, 11]),  # 4 of 40, of which 2 are gone
        ("class_budget", 0.1, [13, 12]),  # 2 of each 20, of which 1 is gone
        ("group_budget", 0.2, [13, 11, 12, 10]),  # 2 of the clinic's 10, which are gone
        ("minimum_kept", 36, [13, 11]),  # of 38
        ("class_minimum_kept", 18, [13, 12]),  # of 19 each
        ("protected", [13], [11, 12, 10, 5]),
        ("protected_file", "ids.txt", [13, 11, 10, 5]),
        ("protected_groups", ["clinic"], [13, 11, 12, 10]),
    ],
)
def test_each_key_bounds_what_is_dropped_by_its_own_budget(
    tmp_path: Path, key: str, value: Any, dropped: list[int]
) -> None:
    (tmp_path / "ids.txt").write_text("12")
    text, labels = [str(point) for point in range(40)], [point % 2 for point in range(40)]
    manifest = Manifest.build(range(40), text, text, labels, ["clinic" if point < 10 else None for point in range(40)])
    points: Any = SimpleNamespace(manifest=manifest, ids=manifest.ids, labels=torch.tensor(labels))
    room = Room(load(write_toml(tmp_path, pruning={key: value})).pruning, points)
    active = torch.ones(40, dtype=torch.bool)
    active[[3, 4]] = False
    worst = torch.tensor([13, 11, 12, 10, 5])
    assert room.admit(worst[room.free[worst]], active).tolist() == dropped


def test_nothing_is_dropped_where_all_are_protected(one_rank: None, tmp_path: Path) -> None:
    here(plan(tmp_path, "model", pruning={"protected": list(range(120))}))
    assert dropped(tmp_path / "model")["point_id"] == []


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_training_that_was_killed_drops_the_same_points_and_ends_in_the_same_bytes(
    one_rank: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int, precision: str
) -> None:
    recipe: dict[str, Any] = {"entry": NOISY, "zero_stage": stage, "precision": precision}
    killed_here(plan(tmp_path, "killed", **recipe), monkeypatch)  # after the first drop
    state = next((tmp_path / "killed" / "state").glob("step-*"))
    assert len(dropped(state)["point_id"]) > 0
    here(plan(tmp_path, "killed", "whole", **recipe))
    assert left(tmp_path / "killed") == left(tmp_path / "whole")
    assert DROPPED in left(tmp_path / "whole")


def test_a_resume_that_forgets_what_was_dropped_would_not_be_the_same(
    one_rank: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_here(plan(tmp_path, "killed"), monkeypatch)
    with monkeypatch.context() as patched:
        patched.setattr(drop_store, "read", lambda _: None)
        here(plan(tmp_path, "killed"))
    here(plan(tmp_path, "whole"))
    assert left(tmp_path / "killed") != left(tmp_path / "whole")


def test_every_zero_stage_and_recomputed_activations_drop_the_same_points(one_rank: None, tmp_path: Path) -> None:
    ways: list[dict[str, Any]] = [{"zero_stage": stage} for stage in range(4)]
    for number, way in enumerate([*ways, {"activation_checkpointing": ["hidden", "head"]}]):
        here(plan(tmp_path / str(number), "model", **way))
    found = [dropped(tmp_path / str(number) / "model")["point_id"] for number in range(5)]
    assert found == found[:1] * 5


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_one_and_two_ranks_drop_the_same_points(one_rank: None, tmp_path: Path, stage: int) -> None:
    here(plan(tmp_path / "1", "model", zero_stage=stage))
    launch("train", plan(tmp_path / "2", "model", ranks=2, zero_stage=stage), 2)
    one, two = (dropped(tmp_path / ranks / "model") for ranks in "12")
    for column in ("point_id", "epoch", "step"):
        assert one[column] == two[column]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("rescaled head", "block 'head', the last linear layer, does not return the logits"),
        ("smoothed", "cross-entropy"),
    ],
)
def test_what_cannot_be_scored_by_its_head_is_refused_before_the_first_step(
    one_rank: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, said: str
) -> None:
    monkeypatch.setattr("flows.ranks.engine.Engine.step", lambda *_: pytest.fail("a step was taken"))
    with pytest.raises(InfluenceError, match=said):
        here(plan(tmp_path, "model", options={"fault": fault}))


@pytest.mark.parametrize(
    ("drops", "more", "said"),
    [
        ({}, {"training": {"command": ["true"]}}, "prune_while_learning is not for a command of your own"),
        ({}, {"training": {"turn_over": ["0"]}}, "prune_while_learning is not for turn_over"),
        ({"from_epoch": 25}, {}, "from_epoch 25 of 25 epochs drops nothing"),
        ({"fraction": 0.1}, {}, r"fraction 0\.1 is above cap 0\.05"),
        ({"cap": 0.15}, {}, r"cap = 0\.15 leaves nothing of pruning\.budget = 0\.15"),
        ({"every": 0}, {}, "every = 0"),
    ],
)
def test_settings_that_cannot_work_are_refused_in_one_line(
    tmp_path: Path, drops: dict[str, Any], more: dict[str, Any], said: str
) -> None:
    training = {"prune_while_learning": drops} | more.get("training", {})
    with pytest.raises(BadInput, match=said) as refused:
        load(write_toml(tmp_path, training=training))
    assert "\n" not in str(refused.value)


def test_a_cycle_drops_in_every_arm_alike_and_records_it_without_a_removal(here: Path) -> None:
    drops = {"from_epoch": 2, "every": 2, "fraction": 0.03, "cap": 0.05}
    file = write_toml(here, training={"prune_while_learning": drops})
    summary = turn(file)
    assert summary.state in ("promoted", "rolled_back")
    folder = here / "ws" / "cycles" / "000001"
    models = {path.parent.name: path for path in folder.glob(f"checkpoints/*/{DROPPED}")}
    assert len(models) == 6
    ledger = ledger_of(load(file))
    events = [event for event in ledger.events(1) if event.state == "dropped"]
    assert {event.key for event in events} == models.keys()
    for event in events:
        assert event.detail["points"] == sha256_file(models[event.key])
        assert event.detail["dropped"] == pq.read_metadata(models[event.key]).num_rows > 0
    proposal = set(Proposal.read(folder).points)
    assert 0 < len(proposal) <= 12  # .15 of 120 less the cap of 6
    assert set(ledger.removed_contents(1)) <= proposal
    scores = score_store.load(folder / "scores")
    assert scores is not None
    baseline = next(path for name, path in models.items() if name.startswith("baseline-seed0"))
    gone = pq.read_table(baseline)["point_id"].to_pylist()
    assert scores.metadata.extra["dropped_while_learning"] == len(gone)
    assert score_store.read(folder / "scores", ["in_train"])["in_train"].to_pylist() == [True] * 120
    steps = read_json(folder / "stages" / "train.json")["result"]["steps"]
    assert {sorted(model.parent.glob("step-*"))[-1].name for model in models.values()} == {f"step-{steps:06d}"}


def test_the_order_says_which_epochs_a_step_ended_and_leaves_out_what_was_dropped() -> None:
    order, ended = Order(torch.arange(10), 4, 0), []
    for _ in range(5):
        order.next()
        ended.append(list(order.ended))
    assert ended == [[], [], [1], [], [2]]  # 10 points: the third step and the fifth
    order.drop(torch.arange(7))
    assert set(order.next().tolist()) == {7, 8, 9}
    assert list(order.ended) == [3]


def test_an_order_that_is_taken_up_again_leaves_out_the_same_rows() -> None:
    whole = Order(torch.arange(10), 4, 0)
    for _ in range(2):
        whole.next()
    whole.drop(torch.tensor([3, 5]))
    again = Order(torch.arange(10), 4, 0, {2: torch.tensor([3, 5])})
    again.skip(2)
    assert [whole.next().tolist() for _ in range(6)] == [again.next().tolist() for _ in range(6)]
