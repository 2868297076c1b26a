"""A service on real servers when they die, and when all its cycles are due at once."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.harness import failures
from tests.faults.server_storm import VICTIMS, Rig, rig
from tests.flows.helpers import write_toml
from tests.stack import Served, address, ended, serving, state_of

pytestmark = [pytest.mark.service, pytest.mark.timeout(3000)]

TEN = range(10)
AT_ONCE = 2


@pytest.fixture(scope="module")
def storm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with rig(tmp_path_factory.mktemp("servers"), seed=0, say=print) as found:
        yield found


def test_each_server_and_the_service_killed_in_a_cycle_leave_the_outcome_of_an_undisturbed_one(storm: Rig) -> None:
    calm = storm.cycle("calm")
    struck = storm.cycle("struck", list(zip(("train", "score", "preview", "retrain"), VICTIMS)))
    assert storm.kills.total() == len(VICTIMS), "or this test shows nothing"
    assert storm.outcome(struck) == storm.outcome(calm)


def test_ten_cycles_due_at_once_all_end_two_at_a_time_and_no_lock_is_heard_of(storm: Rig, tmp_path: Path) -> None:
    shared = {
        "orchestrator": "prefect",
        "service": {"poll_seconds": 1.0},
        "servers": {"mlflow": address(storm.servers.mlflow)},
    }
    files = [write_toml(tmp_path / f"{number}", dataset=f"set-{number}", **shared) for number in TEN]
    most = 0

    def all_ended() -> bool:
        nonlocal most
        most = max(most, sum(state == "Running" for file in files for state in served.under_way(file)))
        return all(ended(file, 1) for file in files)

    with serving(Served(files, storm.servers.prefect, AT_ONCE)) as served:
        for file in files:
            served.begin(file)
        served.until(all_ended, "ten cycles")
        served.until(lambda: not any(served.under_way(file) for file in files), "their runs to end")
        runs = [run["state_name"] for file in files for run in served.runs(file)]
        said = served.log
    assert most == AT_ONCE
    assert runs == ["Completed"] * len(files)
    assert [state_of(file, 1) for file in files] == ["promoted"] * len(files)
    assert [failures(file.parent / "ws") for file in files] == [[]] * len(files)
    assert not re.search(r"\block", said.lower()), "blocks are measured, and no lock is heard of"
