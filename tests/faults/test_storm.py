"""Random kills: `make storm` draws hundreds, this a few."""

from pathlib import Path

import pytest

from tests.faults import ledger_storm
from tests.faults.storm import storm


@pytest.mark.slow
def test_ten_random_kills_of_any_process_leave_the_outcome_of_an_undisturbed_cycle(tmp_path: Path) -> None:
    assert storm(tmp_path, kills=10, seed=0, say=print).kills.total() == 10


@pytest.mark.slow
def test_twenty_kills_of_a_writer_lose_nothing_acknowledged_and_leave_nothing_half_applied(tmp_path: Path) -> None:
    found = ledger_storm.storm(tmp_path, kills=20, seed=0, say=print)
    assert found.acknowledged >= found.kills == 20
