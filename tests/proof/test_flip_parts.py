"""What pruning misses, on cells whose numbers are known."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from tests.proof import flip_parts
from tests.proof.flip_cells import Judged
from tests.proof.flip_parts import ESTIMATE, EXTRA, FOUND, NOTHING, SURE, TRUTH, Parts, arms, kept, section

ACCURACY = {NOTHING: 0.80, ESTIMATE: 0.81, SURE: 0.82, FOUND: 0.83, EXTRA: 0.82, TRUTH: 0.85}
SIZES = {NOTHING: 0, ESTIMATE: 110, SURE: 80, FOUND: 90, EXTRA: 120, TRUTH: 100}
CELL = Parts(0.1, 0, SIZES, {arm: [Judged(value, 2 - value)] for arm, value in ACCURACY.items()}, "2026-11-23")


def test_the_parts_are_mean_effects_and_add_up_to_what_is_missing() -> None:
    [(stay, gone)] = CELL.missing(lambda one: one.accuracy)
    assert stay == pytest.approx((0.01 + 0.02) / 2)  # of the flips: among clean points that went, and among none
    assert gone == pytest.approx((0.02 + 0.03) / 2)
    assert stay + gone == pytest.approx(0.85 - 0.81)


def test_each_arm_puts_one_thing_right() -> None:
    wrong = torch.tensor([True, True, False, False, True])
    found = arms(torch.tensor([3.0, -1.0, 1.0, -2.0, 0.5]), 0.4, wrong)  # 2 points of 5: the first and the third
    expected = {NOTHING: [], ESTIMATE: [0, 2], SURE: [0], FOUND: [0], EXTRA: [0, 1, 2, 4], TRUTH: [0, 1, 4]}
    assert {arm: gone.nonzero()[:, 0].tolist() for arm, gone in found.items()} == expected


def test_a_cell_survives_its_file_and_the_page_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "0.1-0.json").write_text(json.dumps(asdict(CELL)))
    assert kept(tmp_path) == [CELL]
    text = "\n".join(section([CELL]))
    assert "| removed | uniform, 10% (1 seed, 1 retraining) |" in text
    assert "| as many as it estimates | 110; 0.8100 (20%); 1.190 (20%) |" in text
    assert "- 10%: the 10 flips that stay cost 1.50 points of accuracy and 0.015 nats; the 20 clean points" in text
    assert "that go 2.50 points of accuracy and 0.025 nats." in text


def test_without_cells_there_is_no_section() -> None:
    assert section([]) == []


def test_the_section_alone_is_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"CELLS": tmp_path / "flips", "PAGE": tmp_path / "flips.md"}.items():
        monkeypatch.setattr(flip_parts, name, value)
    monkeypatch.setattr("sys.argv", ["flip_parts", "--seeds", "0"])
    (tmp_path / "flips").mkdir()
    (tmp_path / "flips" / "0.1-0.json").write_text(json.dumps(asdict(CELL)))
    (tmp_path / "flips.md").write_text(f"# Proof\n\nkept\n\n{flip_parts.TITLE}\n\nof other cells\n")
    flip_parts.main()
    text = (tmp_path / "flips.md").read_text()
    assert text == "# Proof\n\nkept\n\n" + "\n".join(section([CELL]))
    assert "Measured 2026-11-23." in text
