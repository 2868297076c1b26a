"""`tamis retrain`: the data set as of a cycle, trained on once more, and judged against the champion."""

import json
from pathlib import Path

import pytest

from flows.anew import retrain_file
from flows.config import load
from flows.errors import BadInput
from flows.logs import LOG
from flows.opening import ledger_of
from storage.tracking import Tracker
from tests.flows.helpers import turn, write_toml


def champion(file: Path) -> int:
    config = load(file)
    found = Tracker(config.workspace, config.name).champion(config.name)
    return found.version if found else 0


def test_a_cycles_data_are_trained_on_by_the_recipe_of_now_and_the_model_is_promoted_by_the_guardrails_rule(
    here: Path,
) -> None:
    file = write_toml(here)
    assert turn(file).state == "promoted"
    ledger, before = ledger_of(load(file)), champion(file)
    write_toml(here, training={"epochs": 30})
    better = retrain_file(file, 1, "ada")
    assert (better.cycle, better.points) == (1, 120 - len(ledger.removed_as_of(1)))
    assert better.promoted
    assert better.champion == champion(file) > before
    assert "baseline - champion" in better.reason
    assert ledger.state(1) == "promoted", "the cycle stays what it came to"
    judged = ledger.events(1)[-1]
    assert (judged.state, judged.detail["by"], judged.detail["look"]) == ("judged", "ada", 2)

    write_toml(here, training={"epochs": 1})
    worse = retrain_file(file, 1, "ada")
    assert not worse.promoted
    assert worse.champion == champion(file) == better.champion
    assert "not below" in worse.reason


def test_a_promotion_that_was_killed_is_finished_and_a_repeated_one_changes_nothing_though_the_looks_are_used_up(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn(write_toml(here, guardrail={"max_looks": 2}))
    file = write_toml(here, guardrail={"max_looks": 2}, training={"epochs": 30})
    before, ledger = champion(file), ledger_of(load(file))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Tracker, "set_champion", killed)
        with pytest.raises(KeyboardInterrupt):
            retrain_file(file, 1, "ada")
    assert champion(file) == before
    judged = ledger.events(1)
    assert judged[-1].detail["promoted"]
    done = retrain_file(file, 1, "ada")
    assert done.promoted
    assert done.champion == champion(file) > before
    assert retrain_file(file, 1, "ada") == done
    assert ledger.events(1) == judged, "no further look, and the model is not judged against itself"
    logged = [json.loads(line) for line in (here / "ws" / "logs" / LOG).read_text().splitlines()]
    assert [(line["cycle"], line["stage"]) for line in logged if line["message"] == "begins"] == [(1, "retrain")] * 3
    with pytest.raises(BadInput, match=r"guardrail\.max_looks = 2"):
        retrain_file(write_toml(here, guardrail={"max_looks": 2}, training={"epochs": 1}), 1, "ada")


def test_data_that_changed_and_a_cycle_that_is_open_are_refused(here: Path) -> None:
    marker = here / "moved"
    file = write_toml(here, options={"marker": str(marker)})
    turn(file)
    marker.touch()
    with pytest.raises(BadInput, match="the data changed since cycle 1: `tamis run`"):
        retrain_file(file, 1, "ada")
    marker.unlink()
    turn(file, dry_run=True)
    with pytest.raises(BadInput, match="cycle 2 is not over"):
        retrain_file(file, 1, "ada")
