"""What docs/learning.md is computed from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.proof import learn_cells
from tests.proof.lds_models import Recipe
from tests.proof.lds_truth import Labelled
from tests.proof.learn import page
from tests.proof.learn_cells import SETTINGS, Arm, Cell, Learner, Sets, kept

CELL = Cell(SETTINGS[0].name, 0, {"nothing": Arm(0.9, 0, 0.0), "while learning: loss": Arm(0.94, 100, 0.5)}, 60.0)


def test_a_cell_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learn_cells, "measure", lambda setting, seed: replace(CELL, seed=seed))
    first = kept(SETTINGS[0], 3, tmp_path)
    monkeypatch.setattr(learn_cells, "measure", lambda *_: pytest.fail("measured again"))
    assert kept(SETTINGS[0], 3, tmp_path) == first == replace(CELL, seed=3)


def test_the_page_gives_means_and_intervals_over_seeds() -> None:
    cells = [replace(CELL, setting=setting.name, seed=seed) for setting in SETTINGS for seed in range(2)]
    cells[1] = replace(cells[1], arms=CELL.arms | {"while learning: loss": Arm(0.96, 50, 0.8)})
    text = page(cells)
    assert "| nothing | 0.900 ± 0.000 | 0.900 ± 0.000 |" in text
    assert "| while learning: loss | 0.950 ± 0.127 (75, 0.60) | 0.940 ± 0.000 (100, 0.50) |" in text  # t = 12.71


def test_arms_take_the_same_steps_and_random_drops_fill_the_cap() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 10
    some = Labelled(torch.randn(200, 4, generator=generator), labels)
    learner = Learner(Sets(some, torch.arange(200) < 20, some, some), Recipe(0.05, 0.01, 30), 0)
    arm = learner.arm(torch.arange(200), learner.at_random())
    assert arm.points == 30  # .15 of 200
    assert learner.arm(torch.arange(200)).points == 0
    assert len(learner.checkpoints) == 4
