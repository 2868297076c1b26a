"""What docs/earn.md is computed from."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from tests.proof import earn_cells
from tests.proof.earn import page
from tests.proof.earn_cells import Earned, Removed, kept

WAYS = {"nothing": 0.7, "harmful": 0.775, "mislabeled": 0.69, "harmful and mislabeled": 0.77, "the truth": 0.8}
CELL = Earned({name: Removed(90, 0.9, 0.4, value, 0.6) for name, value in WAYS.items()}, {}, 30.0)


def test_a_cell_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(earn_cells, "measure", lambda kind, seed: replace(CELL, seconds=float(seed)))
    first = kept("random", 3, tmp_path)
    monkeypatch.setattr(earn_cells, "measure", lambda kind, seed: pytest.fail("measured again"))
    assert asdict(kept("random", 3, tmp_path)) == asdict(first) == asdict(replace(CELL, seconds=3.0))


def test_the_page_gives_the_share_of_the_oracles_gain_and_the_policy_of_the_largest() -> None:
    text = page({"systematic": [CELL, CELL]})
    assert "| harmful | 90 ± 0 | 0.90 ± 0.00 | 0.40 ± 0.00 | 0.7750 ± 0.0000 | 0.600 ± 0.000 | 0.75 ± 0.00 |" in text
    assert (
        "| mislabeled | 90 ± 0 | 0.90 ± 0.00 | 0.40 ± 0.00 | 0.6900 ± 0.0000 | 0.600 ± 0.000 | -0.10 ± 0.00 |" in text
    )
    assert "*harmful*, +0.50 ± 0.00 points above the better of the others by seed, loss +0.000 ± 0.000 nats." in text
    assert "1 minutes of CPU" in text


def test_false_alarms_and_what_is_left_out_are_told_of_clean_data() -> None:
    left = {"0%": {"nothing": 0.8}, "20%": {"random": 0.79}, "40%": {"random": 0.77}}
    clean = replace(CELL, left=left)
    text = page({"clean": [clean, clean]})
    assert "harmful 90 ± 0 points, accuracy +7.50 ± 0.00" in text
    assert "| random | -1.00 ± 0.00 | -3.00 ± 0.00 |" in text
    assert "oracle's gain |" not in text
