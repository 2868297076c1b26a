"""The disk with the workspace is lost: a copy of the ledger brings the decisions back, and cycles go on from it."""

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.config import load
from flows.decision import Act, decide
from flows.doctor import examine
from flows.errors import BadInput
from flows.evidence import account_of
from flows.inspection import open_ledger
from flows.opening import open_cycle
from flows.workload import load_workload
from storage.tracking import Tracker
from tests.flows.helpers import turn, write_toml


def command(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    assert done.exit_code == 0, done.output
    return done.output


def test_no_cycle_is_opened_on_a_ledger_without_the_head_on_mlflow_until_somebody_deletes_it_there(here: Path) -> None:
    config = load(write_toml(here))
    workload = load_workload(config)
    cycle = open_cycle(config, workload, lambda _: None)
    before = (here / "ws" / "ledger.duckdb").read_bytes()
    cycle.ledger.record_event(1, "nothing_to_do")
    head = cycle.ledger.head()
    cycle.tracker.anchor(cycle.run, head)
    (here / "ws" / "ledger.duckdb").write_bytes(before)
    with pytest.raises(BadInput, match=f"head {head[:12]} that cycle 1 left on MLflow is no link of the ledger"):
        open_cycle(config, workload, lambda _: None)
    assert cycle.tracker.tags(cycle.run)["tamis.ledger_head"] == head
    cycle.tracker.set_tag(cycle.run, "tamis.ledger_head", "")
    assert open_cycle(config, workload, lambda _: None).number == 1


@pytest.mark.slow
def test_a_lost_workspace_comes_back_from_a_copy_of_its_ledger_as_far_as_the_head_on_the_mlflow_run(here: Path) -> None:
    file, workspace = write_toml(here), here / "ws"
    assert turn(file).state == "promoted"
    assert turn(
        write_toml(here, review={"mode": "manual"}, pruning={"mislabeled_q": 0.9, "harmful_q": 0.9, "budget": 0.3})
    ).proposed
    ledger = open_ledger(file)
    removed, state = ledger.removed_contents(), ledger.state(2)
    run = str(ledger.cycle(2).mlflow_run_id)
    config = load(file)
    head = Tracker(config.workspace, config.name).tags(run)["tamis.ledger_head"]  # as a person reads it off the page

    said = command("ledger", "snapshot", here / "elsewhere.duckdb", "--file", file)
    assert head in said
    shutil.rmtree(workspace)
    file = write_toml(
        here,
        workspace="another disk",
        review={"mode": "manual"},
        pruning={"mislabeled_q": 0.9, "harmful_q": 0.9, "budget": 0.3},
    )
    config = load(file)
    command("ledger", "import", here / "elsewhere.duckdb", "--head", head, "--file", file)

    ledger = open_ledger(file)
    assert ledger.verify(head).holds
    assert (ledger.removed_contents(), ledger.state(2)) == (removed, state)
    told = account_of(file, str(next(iter(removed))))
    assert told.removal is not None
    assert told.removal.actor == "rule:auto"
    assert all(finding.ok for finding in examine(config))

    summary = turn(file)  # the open cycle is computed again, to the same proposal
    assert summary.cycle == 2
    assert summary.proposal == ledger.proposal(2).hash  # type: ignore[union-attr]
    decide(file, Act(summary.proposal, "reject", "ada", "tamis reject"))
    assert turn(file).cycle == 2
    assert ledger.unfinished_cycle() is None
    assert all(finding.ok for finding in examine(config))
