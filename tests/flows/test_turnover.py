"""Turn-over dropout as an option of training: every point has the masks of its key, wherever it is trained."""

from pathlib import Path

import pytest
import torch
from torch import nn

from flows.ranks.plain import train_plainly
from flows.ranks.points import Points
from flows.workload import load_workload
from influence.errors import UnknownBlock
from influence.reading import Task
from influence.turnover import turn_over_self_influence
from tests.flows.helpers import launch
from tests.flows.test_ranks import STEPS, assert_same, here, train_plan, weights

LAYERS = ["0"]


def plainly(folder: Path, steps: int = STEPS, **training: object) -> tuple[nn.Module, Points]:
    """The recipe of a plan in plain torch; the model, and what it was trained on."""
    config = train_plan(folder, **training).config
    workload = load_workload(config)
    points = Points("train", workload.points(), workload)
    saved: list[nn.Module] = []
    train_plainly(workload, points, config.training, torch.arange(len(points)), 3, steps, {steps}, saved.append)
    return saved[0].eval(), points


def arrays(model: nn.Module) -> dict[str, object]:
    return {name: value.detach().numpy() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_number_of_ranks_does_not_change_the_masks(one_rank: None, tmp_path: Path, ranks: int) -> None:
    plan = train_plan(tmp_path, ranks=ranks, turn_over=LAYERS)
    here("train", plan) if ranks == 1 else launch("train", plan, ranks)
    model, _ = plainly(tmp_path / "plain", turn_over=LAYERS)
    assert_same(weights(tmp_path), arrays(model))
    whole, _ = plainly(tmp_path / "whole")
    with pytest.raises(AssertionError):
        assert_same(weights(tmp_path), arrays(whole))


def test_what_a_point_trained_is_found_again_by_its_key_and_the_models_seed(tmp_path: Path) -> None:
    model, points = plainly(tmp_path, steps=300, turn_over=LAYERS)
    task = Task(logits=lambda net, batch: net(batch[0]), labels=lambda batch: batch[1])
    batch = points.take(torch.arange(len(points)))
    found = turn_over_self_influence(model, task, LAYERS, points.keys, [batch], seed=3)
    assert found.mean() > 5 * found.std() / len(found) ** 0.5
    strangers = turn_over_self_influence(model, task, LAYERS, points.keys, [batch], seed=4)
    assert strangers.mean().abs() < 4 * strangers.std() / len(found) ** 0.5


def test_an_unknown_layer_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UnknownBlock, match=r"^turn-over layer 'encoder': the model has 0, 1, 2$"):
        plainly(tmp_path, turn_over=["encoder"])
