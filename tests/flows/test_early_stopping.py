"""A baseline ends when the query loss no longer falls, and every arm of its cycle with it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pyarrow.parquet as pq
import pytest
import torch

from flows.plans import STATE, STOPPED, TrainPlan
from flows.ranks.folds import OutOfFold
from flows.ranks.outcome import Outcome
from flows.ranks.points import Points
from flows.ranks.rank import Rank
from flows.ranks.stopping import Stopping
from flows.recipe import horizon, learning_rate
from flows.sections.training import EarlyStoppingConfig, TrainingConfig
from flows.workload import load_workload
from storage.files import read_json
from storage.trajectory_store import TRAJECTORY
from tests.flows.blobs import Blobs
from tests.flows.helpers import turn, write_toml
from tests.flows.test_training_resume import KILLED, here, killed_here, left, plan

EARLY = {"every": 0.1, "patience": 2}
HASTY = {"learning_rate": 0.5, "schedule": "linear", "weight_decay": 0.1}  # which the queries soon tell from learning


class Told:
    """A query set with the losses it is to have."""

    def __init__(self, losses: Sequence[float]) -> None:
        self._losses = iter(losses)

    def of(self, model: torch.nn.Module) -> torch.Tensor:
        return torch.tensor([[next(self._losses)], [1.0]])


@pytest.mark.parametrize(
    ("losses", "steps"), [([3, 2, 2.5, 2], 40), ([3, 2, 2.5, 1, 2, 2], 60), ([1, 1, 1], 30), ([3, 2, 1, 0.5], None)]
)
def test_it_stops_once_the_loss_has_so_often_in_a_row_not_fallen_below_the_lowest(
    losses: list[float], steps: int | None
) -> None:
    told = cast(Outcome, Told(losses))
    stopping = Stopping(EarlyStoppingConfig(every=0.1, patience=2), 100, told, [])
    taken = range(1, 10 * len(losses) + 1)
    assert next((step for step in taken if stopping.after(step, torch.nn.Identity())), None) == steps
    assert stopping.losses == losses


def early(folder: Path, *models: str) -> TrainPlan:
    made = plan(folder, *models, early_stopping=EARLY, **HASTY)
    jobs = [job.model_copy(update={"steps": 60, "planned": 60, "stops": True, "save_at": (6, 60)}) for job in made.jobs]
    return made.model_copy(update={"jobs": tuple(jobs)})


def test_a_training_that_stops_early_stops_where_it_would_have_had_it_not_been_killed(
    one_rank: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_here(early(tmp_path, "killed"), monkeypatch)
    assert read_json(next((tmp_path / "killed" / STATE).glob("step-*/MANIFEST.json")))["metadata"]["extra"][
        "query_losses"
    ]
    both = early(tmp_path, "killed", "whole")
    here(both)
    assert left(tmp_path / "killed") == left(tmp_path / "whole")
    stopped = read_json(tmp_path / "whole" / STOPPED)
    assert KILLED < stopped["steps"] < 60
    assert len(stopped["query_losses"]) == stopped["steps"] // 6
    assert both.jobs[1].last.exists()
    assert both.jobs[1].last.name == f"step-{stopped['steps']:06d}"
    rates = pq.read_table(tmp_path / "whole" / TRAJECTORY)["learning_rate"].to_pylist()
    training = both.config.training
    assert rates == [learning_rate(training, step, 60) for step in range(1, stopped["steps"] + 1)]
    assert horizon(training, stopped["steps"], 60) == pytest.approx(sum(rates))


def test_every_arm_takes_the_steps_of_the_baseline_that_was_stopped(here: Path) -> None:
    file = write_toml(here, training={"early_stopping": EARLY, **HASTY})
    assert turn(file).state in ("promoted", "rolled_back")
    folders = sorted((here / "ws" / "cycles" / "000001" / "checkpoints").glob("*-seed*"))
    assert len(folders) == 6
    steps = read_json(next(folder for folder in folders if "baseline-seed0" in folder.name) / STOPPED)["steps"]
    assert steps < 25 * 4
    assert {sorted(folder.glob("step-*"))[-1].name for folder in folders} == {f"step-{steps:06d}"}
    assert sum((folder / STOPPED).exists() for folder in folders) == 1


def test_out_of_fold_models_are_stopped_at_the_same_share(
    one_rank: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("flows.ranks.folds.train_plainly", lambda *given, after: asked.append(given[5:7] + given[8:]))
    config = plan(tmp_path, "x").config
    workload = Blobs()
    points = Points("train", workload.points(), workload)
    training = TrainingConfig(ranks=1, batch_size=10, epochs=10)  # 120 points in 2 folds: 60 steps
    rank = Rank(0, 1, tmp_path / "rank.beat")
    folds = OutOfFold(load_workload(config), points, training, 2, rank, share=0.5)
    folds.log_probabilities(torch.ones(120, dtype=torch.bool), 1, 3)
    assert asked == [(30, {15, 30}, 60)] * 2
