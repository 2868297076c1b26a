"""The claims of the README on one seed; `make proof` measures them on five."""

from __future__ import annotations

from pathlib import Path
from statistics import mean

import pytest

from tests.proof.cells import Cell, measure
from tests.proof.settings import SETTINGS

pytestmark = pytest.mark.slow
SEED = 1
FLIPS = ("5 % flips", "10 % flips", "20 % flips")
SHOWN = ("0 % flips", *FLIPS, "10 % systematic")
LABEL_FREE = ("mislabeled alone", "loss", "EL2N", "out-of-fold loss", "kNN")


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Cell]:
    folder: Path = tmp_path_factory.mktemp("proof")
    settings = [setting for setting in SETTINGS["digits"] if setting.name in SHOWN]
    return {setting.name: measure(setting, SEED, folder / str(at)) for at, setting in enumerate(settings)}


def gain(cell: Cell, name: str) -> float:
    """Holdout accuracy after a removal, above the better of removing nothing and removing at random."""
    accuracy = {arm: removal.accuracy for arm, removal in cell.removals.items()}
    return accuracy[name] - max(accuracy["baseline"], accuracy["control"])


def test_the_proposal_finds_flipped_labels_with_precision_and_recall_at_every_rate(cells: dict[str, Cell]) -> None:
    proposals = [cells[name].removals["challenger"] for name in FLIPS]
    assert mean(removal.precision or 0 for removal in proposals) >= 0.70
    assert mean(removal.recall or 0 for removal in proposals) >= 0.65


def test_the_challenger_beats_baseline_and_control_on_average_over_flip_rates(cells: dict[str, Cell]) -> None:
    assert mean(gain(cells[name], "challenger") for name in FLIPS) > 0


def test_on_clean_data_almost_nothing_is_proposed_and_nothing_is_removed(cells: dict[str, Cell]) -> None:
    clean = cells["0 % flips"]
    assert clean.removals["challenger"].size <= 0.02 * 1000
    assert clean.state in ("nothing_to_do", "rolled_back")


def test_influence_sees_a_systematic_error_that_label_free_signals_do_not(cells: dict[str, Cell]) -> None:
    cell = cells["10 % systematic"]
    assert gain(cell, "challenger") > 0
    assert gain(cell, "harmful alone") > 0
    assert all(cell.removals["challenger"].accuracy > cell.removals[name].accuracy for name in LABEL_FREE)


@pytest.mark.parametrize(
    ("name", "signal"),
    [
        ("5 % flips", "suspicion shuffled"),
        ("10 % flips", "suspicion shuffled"),
        ("10 % systematic", "influence shuffled"),
    ],
)
def test_shuffling_the_signal_that_carries_a_decision_destroys_it(
    cells: dict[str, Cell], name: str, signal: str
) -> None:
    shuffled, proposal = cells[name].removals[signal], cells[name].removals["challenger"]
    assert (shuffled.recall or 0) < 0.75 * (proposal.recall or 0)
    assert shuffled.accuracy < proposal.accuracy
