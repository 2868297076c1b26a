"""What docs/proof.md says may be left out: from its cells, and its promise on one seed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.proof import left_out
from tests.proof.cells import Cell, Removal
from tests.proof.settings import REDUNDANT, SETTINGS, write_toml

COPIES, CLEAN = REDUNDANT["digits"]
WAYS = ("redundant", "random", "least loss", "least EL2N")


def cell(key: str, seed: int, **accuracy: float) -> Cell:
    removals = {name.replace("_", " "): Removal(150, 0.66, 1.0, value, 0.1) for name, value in accuracy.items()}
    return Cell(key, seed, "promoted", "", "", removals)


def test_a_line_gives_the_paired_difference_of_the_same_seed() -> None:
    some = {"random": 0.9, "truth": 0.9, "control": 0.9}
    cells = [
        cell(COPIES.key, 0, baseline=0.95, nothing=0.9, challenger=0.94, **some),
        cell(COPIES.key, 1, baseline=0.85, nothing=0.8, challenger=0.84, **some),
    ]
    text = "\n".join(left_out.section("digits", {COPIES.key: cells}))
    proposal = (
        "| **the proposal (challenger)** | 150 ± 0 | 0.660 ± 0.000 | 1.000 ± 0.000 | 0.8900 ± 0.6355 | -1.00 ± 0.00 |"
    )
    assert proposal in text
    assert "Cycles: promoted 2" in text
    assert "| random, of the same classes (control) | 150 ± 0 | - | - |" in text
    assert "Clean data" not in text


def test_every_way_is_shown_at_both_shares() -> None:
    ways = {f"{way}, {share}": 0.9 for way in WAYS for share in ("20%", "40%")}
    cells = [cell(CLEAN.key, seed, nothing=0.9, baseline=0.9, challenger=0.9, **ways) for seed in (0, 1)]
    text = "\n".join(left_out.section("digits", {CLEAN.key: cells}))
    assert all(f"| {way} | 150 ± 0 | 0.9000 ± 0.0000 | +0.00 ± 0.00 |" in text for way in ways)


def test_what_is_not_measured_has_no_line() -> None:
    assert left_out.section("digits", {}) == []


def test_cells_of_other_budgets_are_other_files_and_budgets_reach_the_toml(tmp_path: Path) -> None:
    keys = [setting.key for task in ("digits", "Fashion-MNIST") for setting in (*SETTINGS[task], *REDUNDANT[task])]
    assert len(set(keys)) == len(keys)
    assert "budget = 0.2" in write_toml(CLEAN, 0, tmp_path).read_text()


@pytest.mark.slow
def test_all_copies_are_found_and_nothing_is_lost_without_them(tmp_path: Path) -> None:
    found = left_out.measure(COPIES, 1, tmp_path).removals
    assert (found["challenger"].recall or 0) >= 0.9
    assert found["challenger"].accuracy >= found["baseline"].accuracy - 0.01
