"""Points removed earlier that come back, in whole cycles: alone, and beside others that leave."""

from pathlib import Path
from typing import Any

import pytest

from flows.config import load
from flows.stores import ledger_of
from flows.summary import Summary
from flows.tables import print_summary
from storage.files import read_json
from tests.flows.helpers import turn, write_toml

ALONE = "Points only come back"
HELPED = {"policies": ["redundant"], "redundant_share": 0.1}  # 12 points with right labels, which are missed later
NOBODY = {"policies": ["harmful"], "harmful_q": 1e-9}


def arms(folder: Path, cycle: int) -> dict[str, int]:
    """The models that a cycle trained, of each arm."""
    names = [path.name for path in (folder / f"ws/cycles/{cycle:06d}/checkpoints").iterdir()]
    return {arm: sum(name.startswith(arm + "-seed") for name in names) for arm in ("baseline", "challenger", "control")}


@pytest.mark.slow
def test_points_that_only_come_back_are_judged_without_a_control_and_beside_others_that_leave_with_one(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wide = {"tolerance": 5.0, "redundant_tolerance": 5.0, "group_tolerance": 5.0}

    def cycle(pruning: dict[str, Any]) -> Summary:
        return turn(write_toml(here, pruning=pruning, guardrail={"seeds": 2, "resamples": 200} | wide))

    assert cycle(HELPED).actions == {"remove": 12}
    assert cycle(NOBODY).state == "nothing_to_do"
    alone = cycle(NOBODY | {"z_restore": 6.0})
    assert alone.actions.keys() == {"restore"}
    assert 0 < alone.actions["restore"] < 12
    assert arms(here, 3) == {"baseline": 2, "challenger": 2, "control": 0}, "no arm is another one again"
    assert list(alone.arms) == ["baseline", "challenger"]
    checks = {check.name: check.limit for check in alone.checks if check.name.startswith("challenger")}
    assert checks == {"challenger - baseline": 5.0, "challenger - champion": 5.0}
    assert (alone.state, alone.removed, alone.restored) == ("promoted", 0, alone.actions["restore"])
    assert "below 5 nats, what a return may cost" in alone.reason
    assert ALONE.lower() in alone.proof
    print_summary(alone, as_json=False)
    assert ALONE.lower() in capsys.readouterr().out
    assert ALONE in alone.report.read_text()
    config = load(here / "tamis.toml")
    assert len(ledger_of(config).removed_as_of()) == 12 - alone.restored

    mixed = cycle({"policies": ["harmful"], "z_restore": 1.01})
    assert mixed.actions.keys() == {"remove", "restore"}
    assert arms(here, 4) == {"baseline": 2, "challenger": 2, "control": 2}
    checks = {check.name: check.limit for check in mixed.checks if check.name.startswith("challenger")}
    assert checks == {"challenger - baseline": 5.0, "challenger - control": 0.0, "challenger - champion": 5.0}
    assert "below its limit" in mixed.reason
    assert ALONE.lower() not in mixed.proof
    assert ALONE not in mixed.report.read_text().partition("<dl")[0]
    steps = read_json(here / "ws/cycles/000004/stages/retrain-2.json")["result"]["steps"]
    assert len(set(steps.values())) == 1
