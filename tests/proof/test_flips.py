"""The arithmetic of docs/flips.md, on cells whose numbers are known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.proof.flip_cells import SETTINGS, Flips, from_json, to_json
from tests.proof.flips import SIGNALS, page


def cell(suspicion: tuple[float, float] = (0.99, 0.931), pruned: float = 0.83, noise_rate: float = 0.11) -> Flips:
    signals = {name: (0.98, 0.90 + 0.01 * place) for place, name in enumerate(SIGNALS)}  # the best AP: .94
    accuracy = {"nothing": 0.80, "suspicion": pruned, "the truth": 0.84}
    first = SETTINGS[0]
    found = signals | {"suspicion": suspicion}
    return Flips(first.recipe.name, first.noise, 0, found, 0.1, noise_rate, 0.9, accuracy, 0.5, 60.0)


def test_a_cell_survives_its_file() -> None:
    assert from_json(to_json(cell())) == cell()


def test_what_was_asked_and_met_is_said_so() -> None:
    text = page([cell(), replace(cell(noise_rate=0.13), seed=1)])
    assert "1 of 1." in text  # .009 of AP behind the best single signal is still close
    assert "at most 0.020 from the truth" in text
    assert "75% to 75%, below the 60 % asked in 0." in text
    assert "| lead over the best single | +0.010 / -0.009 |" in text
    assert "(2 seeds)" in text


@pytest.mark.parametrize(("suspicion", "short"), [((0.97, 0.95), True), ((0.99, 0.92), True), ((0.976, 0.931), False)])
def test_what_was_missed_is_named(suspicion: tuple[float, float], short: bool) -> None:
    text = page([cell(suspicion=suspicion, pruned=0.81)])
    assert ("0 of 1 (not: MLP, converged, uniform, 10%)" in text) == short
    assert "below the 60 % asked in 1 (not: MLP, converged, uniform, 10%)" in text
