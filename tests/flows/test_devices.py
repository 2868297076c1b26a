"""Where ranks compute: what `[launch]` says, and scores that do not depend on it (the stand-in is tests/away.py)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from flows.check import check
from flows.config import load
from flows.errors import BadInput
from flows.estimators import ESTIMATORS
from flows.plans import Plan, TrainPlan
from flows.ranks.device import backend_of, device_of
from flows.ranks.dropping import Dropping
from flows.ranks.heads import HeadReader
from flows.ranks.order import Order
from flows.ranks.points import Points
from flows.ranks.preview import Previewing
from flows.ranks.rank import Rank, T
from flows.ranks.score import Scoring
from flows.sections.launching import LaunchConfig
from flows.workload import load_workload, seeded_model
from influence import blocks
from tests.away import AWAY, away
from tests.flows.helpers import launch, write_toml
from tests.flows.test_preview import preview_plan
from tests.flows.test_ranks import here, score_plan, train_plan

CUDA = torch.device("cuda", 0)
HEAD = {"blocks": {"last": 1}}  # few enough parameters for every estimator
SCORINGS: dict[str, dict[str, Any]] = {
    **{name: {"estimator": name, "probe": 0, **HEAD} for name in ESTIMATORS},
    "ekfac": {"blocks": "auto", "probe": 10},
    "compressed": {
        "estimator": "arnoldi",
        "compression": {"kind": "mask+sjlt", "ratio": 4},
        "exact_head": False,
        "probe": 0,
    },
    "by block, nothing cached": {"estimator": "kfac", "per_block": True, "probe": 0, "factor_cache": {"memory": 0}},
}


class OneRank(Rank):
    """The only rank, without a process group."""

    def sum(self, tensor: Tensor) -> None:
        """Nothing: there is nothing to add."""

    def broadcast(self, tensor: Tensor, source: int) -> None:
        """Nothing: there is no one to give it to."""

    def gather(self, value: T) -> list[T]:
        """This one's alone."""
        return [value]


def rank_on(device: torch.device, plan: Plan, program: str) -> OneRank:
    plan.logs.mkdir(parents=True, exist_ok=True)
    return OneRank(0, 1, plan.logs / f"{program}-rank0.beat", device)


@pytest.fixture
def gpus(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """So many, as far as torch says."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: request.param)
    return request.param


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trained(one_rank: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    here("train", train_plan(folder))
    return folder


def scored(folder: Path, trained: Path, device: torch.device, **scoring: Any) -> dict[str, list[Any]]:
    plan = score_plan(folder, trained, **{"folds": 2, "neighbours": 5, **scoring})
    short = plan.config.training.model_copy(update={"epochs": 2})  # of the out-of-fold models
    pruning = plan.config.pruning.model_copy(update={"policies": ("harmful", "balanced")})
    plan = plan.model_copy(update={"config": plan.config.model_copy(update={"training": short, "pruning": pruning})})
    Scoring(plan, rank_on(device, plan, "score")).run()
    shards = sorted(plan.folder.glob("*.parquet"))
    assert shards
    return {shard.name: pq.read_table(shard).to_pylist() for shard in shards}


def previewed(folder: Path, trained: Path, device: torch.device) -> list[Any]:
    plan = preview_plan(folder, trained, relabel=3)
    Previewing(plan, rank_on(device, plan, "preview")).run()
    return pq.read_table(plan.file).to_pylist()


@pytest.mark.parametrize(
    "case", [case if case == "ekfac" else pytest.param(case, marks=pytest.mark.matrix) for case in SCORINGS]
)
def test_scores_on_another_device_are_those_of_the_cpu(tmp_path: Path, trained: Path, case: str) -> None:
    truth = scored(tmp_path / "here", trained, torch.device("cpu"), **SCORINGS[case])
    with away():
        found = scored(tmp_path / "there", trained, AWAY, **SCORINGS[case])
    assert found == truth
    assert '"device": "away:0"' in (tmp_path / "there" / "logs" / "score-rank0.json").read_text()


def test_a_preview_on_another_device_takes_the_curvature_that_was_kept_of_it_and_foretells_the_same(
    tmp_path: Path, trained: Path
) -> None:
    truth = previewed(tmp_path / "here", trained, torch.device("cpu"))
    with away():
        fitted = previewed(tmp_path / "there", trained, AWAY)
        parts = {path: path.stat().st_mtime_ns for path in (tmp_path / "there").rglob("*curvature*")}
        (tmp_path / "there" / "preview.parquet").unlink()
        restored = previewed(tmp_path / "there", trained, AWAY)
    assert parts
    assert {path: path.stat().st_mtime_ns for path in parts} == parts
    assert truth == fitted == restored


def dropped(plan: TrainPlan, device: torch.device) -> list[Any]:
    """What a model as it begins drops after the first epoch."""
    workload, rank = load_workload(plan.config), rank_on(device, plan, "train")
    points, queries = (
        Points(name, given, workload, device=device)
        for name, given in (("train", workload.points()), ("query", workload.queries()))
    )
    model = seeded_model(workload, 3).to(device)
    reader = HeadReader(blocks.head(model), model, workload, rank)
    reader.check(points)
    assert reader.whole(queries).inputs.device == device
    dropping = Dropping(plan.config, plan.jobs[0], reader, points, queries, None)
    order = Order(points.rows, len(points), seed=3)
    order.next()
    dropping.after(order)
    return dropping.dropped.to_pylist()


def test_points_that_a_training_drops_are_the_same_on_another_device(tmp_path: Path) -> None:
    plan = train_plan(tmp_path, prune_while_learning={"from_epoch": 1, "every": 1, "fraction": 0.02, "cap": 0.05})
    truth = dropped(plan, torch.device("cpu"))
    with away():
        found = dropped(plan, AWAY)
    assert found == truth
    assert len(truth) == 4


def test_nccl_between_cpus_is_one_line_when_the_file_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r'backend = "nccl" is between GPUs[^\n]*$'):
        load(write_toml(tmp_path, launch={"device": "cpu", "backend": "nccl"}))


@pytest.mark.parametrize("gpus", [0], indirect=True)
@pytest.mark.parametrize("wanted", [{"device": "cuda"}, {"backend": "nccl"}])
def test_a_gpu_that_is_not_there_is_one_line_before_anything_is_trained(
    tmp_path: Path, gpus: int, wanted: dict[str, str]
) -> None:
    [found] = [one for one in check(load(write_toml(tmp_path, launch=wanted))) if one.name == "device"]
    [(key, value)] = wanted.items()
    assert not found.ok
    assert found.text.startswith(f"launch.{key} = '{value}', and torch finds no GPU on this machine")
    assert "\n" not in found.text


@pytest.mark.parametrize("gpus", [2], indirect=True)
@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_more_ranks_than_gpus_are_refused_and_never_put_on_the_cpu(gpus: int, device: Any) -> None:
    launch = LaunchConfig(device=device)
    assert [device_of(launch, local) for local in range(2)] == [CUDA, torch.device("cuda", 1)]
    with pytest.raises(BadInput, match=f"launch.device = '{device}': 3 ranks on this machine, and torch finds 2 GPUs"):
        device_of(launch, 2)
    assert device_of(LaunchConfig(device="cpu"), 2).type == "cpu"


@pytest.mark.parametrize("gpus", [0], indirect=True)
def test_auto_is_the_cpu_where_there_is_no_gpu(gpus: int) -> None:
    assert device_of(LaunchConfig(), 3).type == "cpu"


def test_tensors_on_the_cpu_travel_by_gloo_whatever_those_on_gpus_do() -> None:
    assert backend_of(LaunchConfig(), torch.device("cpu")) == "gloo"
    assert backend_of(LaunchConfig(), CUDA) == "cpu:gloo,cuda:nccl"
    assert backend_of(LaunchConfig(backend="nccl"), CUDA) == "cpu:gloo,cuda:nccl"
    assert backend_of(LaunchConfig(backend="gloo"), CUDA) == "gloo"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_rank_without_the_gpu_it_is_to_have_says_so_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(BadInput, match=r"^launch.device = 'cuda', and torch finds no GPU on this machine[^\n]*$"):
        launch("score", score_plan(tmp_path, tmp_path, launch={"device": "cuda"}), 1)
