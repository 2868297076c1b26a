"""Random kills: `make storm` draws a hundred, this a few."""

from pathlib import Path

import pytest

from tests.faults.storm import storm


@pytest.mark.slow
def test_ten_random_kills_of_any_process_leave_the_outcome_of_an_undisturbed_cycle(tmp_path: Path) -> None:
    assert storm(tmp_path, kills=10, seed=0, say=print).kills.total() == 10
