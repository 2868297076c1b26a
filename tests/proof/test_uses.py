"""What docs/uses.md is computed from."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from tests.proof import use_cells
from tests.proof.lds_truth import Labelled
from tests.proof.use_cells import COPIES, POINTS, WRONG, Sets, Uses, kept
from tests.proof.uses import page

UNDONE = {"nothing": 0.7, "influence on the queries": 0.8}
CELL = Uses(
    found={kind: {"influence on the queries": (0.9, 0.6)} for kind in ("systematic", "copies")},
    accuracy={"systematic": UNDONE, "copies": UNDONE},
    rise={"influence on the query": 2.0},
    left={"0%": {"nothing": 0.75}, "20%": {"random": 0.74}},
    seconds=60.0,
)


def test_a_cell_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(use_cells, "measure", lambda seed: replace(CELL, seconds=float(seed)))
    first = kept(3, tmp_path)
    monkeypatch.setattr(use_cells, "measure", lambda seed: pytest.fail("measured again"))
    assert asdict(kept(3, tmp_path)) == asdict(first) == asdict(replace(CELL, seconds=3.0))


def test_the_page_gives_means_and_intervals_over_seeds() -> None:
    other = replace(CELL, rise={"influence on the query": 4.0})
    text = page([CELL, other])
    assert "| influence on the query | 3.00 ± 12.71 |" in text  # t = 12.706 at one degree of freedom, s / sqrt(2) = 1
    assert "| nothing | - | 0.700 ± 0.000 | - | 0.700 ± 0.000 |" in text
    assert "| random | 0.740 ± 0.000 |" in text


def test_copies_are_few_points_many_times_with_one_wrong_label_each(monkeypatch: pytest.MonkeyPatch) -> None:
    single = POINTS - WRONG + WRONG // COPIES
    inputs, labels = torch.arange(single)[:, None].float(), torch.arange(single) % 10
    some = Labelled(inputs, labels)
    monkeypatch.setattr(use_cells, "task_of", lambda _: Sets(some, torch.zeros(single, dtype=torch.bool), some, some))
    monkeypatch.setattr(use_cells, "FashionMnist", lambda *_: None)
    sets = use_cells._with_errors("copies", 0)
    truth = sets.points.inputs[:, 0].long() % 10
    assert len(sets.points.labels) == POINTS
    assert sets.wrong.sum() == WRONG
    assert (sets.points.labels != truth).equal(sets.wrong)
    assert len(sets.points.inputs[sets.wrong].unique()) == WRONG // COPIES
