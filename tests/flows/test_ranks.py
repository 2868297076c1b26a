"""The rank programs: the number of ranks changes nothing but the rounding of sums."""

import ast
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from flows.agents import Launch
from flows.config import Config, load
from flows.dataset import read_sets
from flows.errors import BadInput
from flows.estimators import ESTIMATORS
from flows.plans import Job, Plan, ScorePlan, TrainPlan, write_plan
from flows.policies import rules_of
from flows.ranks.order import Order
from flows.ranks.plain import train_plainly
from flows.ranks.points import Points
from flows.ranks.weights import load_weights
from flows.sections.curation import PruningConfig
from flows.training import write_ids
from flows.workload import load_workload
from flows.workloads.tiny import Tiny
from storage import checkpoints, score_store
from storage.budgets import Budgets
from storage.points import Manifest
from storage.policies import policy_json
from storage.proposals import Proposal
from storage.selection import select
from storage.trajectory_store import TRAJECTORY
from tests.flows.helpers import BLOBS, launch, run_here, write_toml

STEPS = 30


def train_plan(folder: Path, entry: str = "tiny", options: Any = None, **training: Any) -> TrainPlan:
    config = load(write_toml(folder, entry, options, training=training))
    job = Job(role="baseline", seed=3, steps=STEPS, planned=STEPS, folder=folder / "model", save_at=(10, STEPS))
    return TrainPlan(config=config, logs=folder / "logs", train_digest=train_digest(config), jobs=(job,))


def train_digest(config: Config) -> str:
    return read_sets(load_workload(config)).digests["train"]


def weights(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    found = checkpoints.latest(folder / "model")
    assert found is not None
    assert found.metadata.step == STEPS
    return checkpoints.read_tensors(found.path)


@pytest.fixture(scope="module")
def plainly_trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray[Any, Any]]:
    """The same recipe in plain torch, without DeepSpeed and without ranks."""
    training = train_plan(tmp_path_factory.mktemp("plain")).config.training
    workload = Tiny()
    points = Points("train", workload.points(), workload)
    saved: dict[str, np.ndarray[Any, Any]] = {}

    def keep(model: torch.nn.Module) -> None:
        saved.update({name: value.numpy().copy() for name, value in model.state_dict().items()})

    train_plainly(workload, points, training, torch.arange(200), 3, STEPS, (STEPS,), keep)
    return saved


def assert_same(one: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    # float32 sums in another order: 1e-7 relative a step, some 30 steps of AdamW
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("ranks", "stage"),
    [
        (2, 2),
        (2, 3),
        pytest.param(2, 0, marks=pytest.mark.slow),
        pytest.param(2, 1, marks=pytest.mark.slow),
        pytest.param(1, 2, marks=pytest.mark.slow),
    ],
)
def test_every_zero_stage_on_any_ranks_trains_the_model_that_plain_torch_trains(
    tmp_path: Path, plainly_trained: dict[str, Any], ranks: int, stage: int
) -> None:
    launch("train", train_plan(tmp_path, ranks=ranks, zero_stage=stage), ranks)
    assert_same(weights(tmp_path), plainly_trained)
    assert checkpoints.verify(tmp_path / "model" / f"step-{STEPS:06d}").metadata.world_size == ranks
    log = (tmp_path / "logs" / "train-rank0.log").read_text()
    assert re.search(rf"^rank 0 of {ranks} on (cpu, gloo|cuda:0, cpu:gloo,cuda:nccl)$", log, re.MULTILINE)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_zero_stage_on_one_rank_trains_that_model_too(
    one_rank: None, tmp_path: Path, plainly_trained: dict[str, Any], stage: int
) -> None:
    here("train", train_plan(tmp_path, zero_stage=stage))
    assert_same(weights(tmp_path), plainly_trained)


def here(program: str, plan: Plan) -> None:
    path = write_plan(plan, plan.logs / f"{program}.json")
    run_here(Launch(program, path, 1, plan.logs, 60.0), lambda _: None)


def test_a_nan_in_the_middle_of_the_training_names_its_point_and_leaves_no_checkpoint(tmp_path: Path) -> None:
    plan = train_plan(tmp_path, BLOBS, {"fault": "nan in training"}, ranks=2)
    with pytest.raises(BadInput, match="the loss of point 77 is not finite"):
        launch("train", plan, 2)
    assert checkpoints.latest(tmp_path / "model") is None
    assert not list(tmp_path.glob("model/step-*"))


def test_a_checkpoint_of_another_model_is_one_clear_line(one_rank: None, tmp_path: Path) -> None:
    here("train", train_plan(tmp_path))
    other = torch.nn.Linear(64, 10)
    with pytest.raises(BadInput, match=r"of another model than the workload's[^\n]*$"):
        load_weights(other, tmp_path / "model" / f"step-{STEPS:06d}")


def test_a_finished_model_is_not_trained_again(one_rank: None, tmp_path: Path) -> None:
    plan = train_plan(tmp_path)
    here("train", plan)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "model").rglob("*")}
    here("train", plan)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "model").rglob("*")} == before


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_baseline_leaves_the_points_and_the_learning_rate_of_every_step(
    one_rank: None, tmp_path: Path, ranks: int
) -> None:
    plan = train_plan(tmp_path, ranks=ranks, learning_rate=2e-3)
    data, gone = Tiny().points(), frozenset(Tiny().points().ids[:2])
    points = Points("train", data, Tiny(), gone)
    removed = write_ids(tmp_path / "removed.parquet", gone, points.manifest)
    plan = plan.model_copy(update={"jobs": (plan.jobs[0].model_copy(update={"removed": removed}),)})
    if ranks == 1:
        here("train", plan)
    else:
        launch("train", plan, ranks)
    found = pq.read_table(tmp_path / "model" / TRAJECTORY).to_pydict()
    assert found["step"] == list(range(1, STEPS + 1))
    assert found["learning_rate"] == [2e-3] * STEPS
    order = Order(points.rows[points.in_train], plan.config.training.batch_size, seed=3)
    assert found["point_ids"] == [[data.ids[row] for row in order.next()] for _ in range(STEPS)]


def score_plan(
    folder: Path,
    trained: Path,
    entry: str = "tiny",
    options: Any = None,
    *,
    launch: Any = None,
    pruning: Any = None,
    **scoring: Any,
) -> ScorePlan:
    others = {"launch": launch or {}, "pruning": pruning or {}}
    config = load(write_toml(folder, entry, options, scoring={"chunk": 40} | scoring, **others))
    points = load_workload(config).points()
    manifest = Manifest.build(points.ids, map(str, points.ids), map(str, points.ids), points.labels)
    return ScorePlan(
        config=config,
        logs=folder / "logs",
        train_digest=train_digest(config),
        cycle=1,
        checkpoints=tuple(sorted((trained / "model").glob("step-*"))),
        removed=write_ids(folder / "removed.parquet", [manifest.ids[4], manifest.ids[50]], manifest),
        folder=folder / "scores",
        checkpoint_digest="d",
        inputs_digest="i",
        horizon=STEPS * config.training.learning_rate,
    )


@pytest.fixture(scope="module")
def trained(one_rank: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    here("train", train_plan(folder))
    return folder


@pytest.fixture(scope="module")
def scored(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[int, Path]]:
    """The same checkpoints scored by an estimator on one rank and on two."""

    @cache
    def by(estimator: str) -> dict[int, Path]:
        folders = {}
        for ranks in (1, 2):
            folder = tmp_path_factory.mktemp(f"{estimator}{ranks}")
            plan = score_plan(folder, trained, ranks=ranks, estimator=estimator, blocks="auto", probe=10)
            if ranks == 1:
                here("score", plan)
            else:
                launch("score", plan, ranks)
            score_store.finish(plan.folder, 5)
            folders[ranks] = plan.folder
        return folders

    return by


Scored = Callable[[str], dict[int, Path]]
EVERY = [name if name in ("ekfac", "dense") else pytest.param(name, marks=pytest.mark.slow) for name in ESTIMATORS]


@pytest.mark.parametrize("estimator", EVERY)
def test_one_and_two_ranks_give_the_same_scores(scored: Scored, estimator: str) -> None:
    one, two = (score_store.read(folder) for folder in scored(estimator).values())
    assert one.num_rows == two.num_rows == 200
    assert one.schema.names == two.schema.names
    numeric = [field.name for field in one.schema if pa.types.is_floating(field.type)]
    assert {"influence", "self_influence", "posterior", "harmful_q", "signal_influence_head"} <= set(numeric)
    for name in numeric:
        assert one[name].is_valid().equals(two[name].is_valid()), name
        a, b = (table[name].drop_null().to_numpy() for table in (one, two))
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b), name
    for name in ("point_id", "in_train", "predicted", "label", "suggested_label", "memorization"):
        assert one[name].equals(two[name]), name


def proposal_of(folder: Path) -> Proposal:
    rules, budgets = rules_of(PruningConfig()), Budgets(cycle=0.15, cumulative=0.3, per_class=0.5)
    return Proposal.build(1, select(folder, rules, budgets), "0" * 64, "0" * 64, policy_json(rules, budgets))


def test_the_columns_of_a_score_row_stand_in_their_order(scored: Scored) -> None:
    names = score_store.read(scored("ekfac")[1]).schema.names
    order = "point_id cycle in_train loss margin predicted label influence influence_se influence_class self_influence "
    order += "classification_influence relative agreement memorization signal suspicion suggested_label top_queries"
    kinds = [re.sub("^(influence_class|relative|signal)_.*", r"\1", name) for name in names]
    policies = {"posterior", "harmful_p", "harmful_q", "mislabeled_q", "memorized_q", "redundancy", "copy_of"}
    assert list(dict.fromkeys(kind for kind in kinds if kind not in policies)) == order.split()


def test_columns_of_blocks_add_up_to_the_influence_that_is_scored_without_them(
    scored: Scored, trained: Path, tmp_path: Path
) -> None:
    plain = score_store.read(scored("ekfac")[1])
    blocks = score_store.load(scored("ekfac")[1])
    plan = score_plan(tmp_path, trained, ranks=1, blocks="auto", probe=0, per_block=True)
    here("score", plan)
    score_store.finish(plan.folder, 5)
    table = score_store.read(plan.folder)
    assert blocks is not None
    names = [f"influence_block_{block}" for block in blocks.metadata.blocks]
    assert len(names) > 1
    assert [name for name in table.schema.names if name not in plain.schema.names] == names
    parts = np.stack([table[name].to_numpy() for name in names])
    assert (np.abs(parts).max(1) > 0).all()
    influence = plain["influence"].to_numpy()
    for found in (parts.sum(0), table["influence"].to_numpy()):
        np.testing.assert_allclose(found, influence, rtol=0, atol=1e-12 * np.abs(influence).max())


def test_one_and_two_ranks_choose_the_same_blocks_and_say_the_same_of_them(scored: Scored) -> None:
    sets = [score_store.load(folder) for folder in scored("ekfac").values()]
    one, two = (found.metadata for found in sets if found is not None)
    assert one.blocks == two.blocks
    assert one.extra["selection"] == two.extra["selection"]
    probes: list[Any] = [found.extra["probe"] for found in (one, two)]
    for kind in ("blocks", "estimator"):
        assert probes[0][kind] == pytest.approx(probes[1][kind], abs=0.01)  # conjugate gradients stop at 1e-3


def test_one_and_two_ranks_give_the_same_proposal_and_no_score_is_near_the_threshold(scored: Scored) -> None:
    rules, hashes, sizes = rules_of(PruningConfig()), set(), set()
    for folder in scored("ekfac").values():
        proposal = proposal_of(folder)
        hashes.add(proposal.hash)
        sizes.add(proposal.size)
        table = score_store.read(folder, [rule.column for rule in rules])
        for rule in rules:
            assert np.abs(table[rule.column].to_numpy() - rule.threshold).min() > 1e-5
    assert len(hashes) == 1
    assert min(sizes) > 0


def test_points_removed_earlier_are_scored_but_neither_ranked_nor_proposed(scored: Scored) -> None:
    table = score_store.read(scored("ekfac")[2])
    ids = table["point_id"].to_pylist()
    gone = [row for row in table.to_pylist() if not row["in_train"]]
    assert [row["point_id"] for row in gone] == [ids[4], ids[50]]
    for row in gone:
        assert row["influence"] is not None
        assert (row["harmful_q"], row["mislabeled_q"], row["memorized_q"], row["redundancy"]) == (1.0, 1.0, 1.0, None)


def test_the_scoring_program_never_reads_the_holdout_set(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def holdout(self: Tiny) -> None:
        raise AssertionError("the holdout set was read")

    plan = score_plan(tmp_path, trained)
    monkeypatch.setattr(Tiny, "holdout", holdout)
    here("score", plan)
    assert score_store.finish(plan.folder, 5).rows == 200


def test_the_scoring_program_does_not_import_what_reads_the_holdout_set() -> None:
    ranks = Path(__file__).parents[2] / "flows" / "ranks"

    def imported(module: str, seen: set[str]) -> set[str]:
        tree = ast.parse((ranks / f"{module}.py").read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("flows.ranks."):
                name = str(node.module).removeprefix("flows.ranks.")
                if name not in seen:
                    seen.add(name)
                    imported(name, seen)
        return seen

    assert "holdout" in imported("train", set())
    assert "attribution" in imported("score", set())
    assert "holdout" not in imported("score", set())


def test_a_nan_in_the_scoring_names_its_point(one_rank: None, tmp_path: Path) -> None:
    here("train", train_plan(tmp_path, BLOBS))
    plan = score_plan(tmp_path / "scoring", tmp_path, BLOBS, {"fault": "nan in scoring"})
    with pytest.raises(BadInput, match="the loss of point 77 is not finite"):
        here("score", plan)
    assert not list(plan.folder.glob("part-*.parquet"))
