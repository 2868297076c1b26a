"""A forecast from a trial of known figures grows each phase as its work grows; a real one meets the cycle after it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from flows.config import Config, load
from flows.forecast import foretell
from flows.hindsight import Compared, keep, kept
from flows.opening import workspace
from flows.outlook import memory_here, outlook
from flows.recipe import save_points
from flows.spent import Spent
from flows.trial import STEPS, Launched, ScoreTrial, TrainTrial, Trial, _steps
from flows.workload import Sample, load_workload
from tests.flows.helpers import tamis, write_toml

MEGABYTE = 10**6
TRAINED = {
    "start": 2.0,
    "making the engine of baseline, seed 0": 5.0,
    "making the engine of baseline, seed 1": 0.5,
    "training baseline, seed 0": 100.0,  # the first is cold and foretells nothing
    "training baseline, seed 1": STEPS * 0.25,
    "saving parameters": 0.4,
    "saving the state": 0.6,
    "judging": 0.2,
}
SCORED = {
    "start": 1.0,
    "finding the neighbours": 0.01,
    "making an out-of-fold model": 3.0,
    "out-of-fold models, round 1": 0.04,
    "out-of-fold models, round 2": 0.06,
    "keeping the answers": 0.8,
    "answers of out-of-fold models": 0.2,
    "curvature, step-000006": 0.3,
    "decomposing the curvature": 0.7,
    "probing the blocks": 0.5,
    "scoring the queries": 0.9,
    "scoring": 0.4,
}
REPORTED = {"data_bytes": 0, "cache_bytes": 20 * MEGABYTE, "column_bytes": MEGABYTE}


def spent(seconds: dict[str, float], memory: int = 500 * MEGABYTE) -> Spent:
    return Spent(seconds, cpu_seconds=0.0, exchange_bytes=0, memory=memory, device_memory=0, anew=True)


def trial(points: int, few: int) -> Trial:
    train = TrainTrial(
        Launched(4.0, spent(TRAINED), {}), STEPS, 4, 6, checkpoint_bytes=MEGABYTE, outcome_bytes=500, record_bytes=10.0
    )
    score = ScoreTrial(
        Launched(3.0, spent(SCORED), REPORTED),
        points=few,
        fold_steps=10,
        classes=3,
        shard_bytes=few * 1000,
        parts_bytes={"fold": 100 * few, "chunk": 1000 * few, "curvature": 5 * MEGABYTE},
        input_bytes=256,
    )
    return Trial(train, score, points)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Two checkpoints, three seeds; epochs, batch and chunk that divide the points of the trials below."""
    training = {"epochs": 10, "batch_size": 32, "checkpoints": [0.5, 1.0], "resume_every": 0.25, "ranks": 2}
    scoring = {"chunk": 100, "folds": 5, "ranks": 2}
    return load(write_toml(tmp_path, training=training, scoring=scoring, guardrail={"seeds": 3}))


def test_training_grows_with_steps_and_models_and_the_first_model_alone_pays_for_the_first_engine(
    config: Config,
) -> None:
    found = foretell(trial(3200, 400), config, in_train=3200).seconds
    steps, step, state, checkpoint = 1000, 0.25, 0.1, 0.1
    once, launch = 0.5 + 0.1, 4.0 + 2.0 + (5.0 - 0.5)
    assert found["train"] == pytest.approx(launch + once + steps * step + 2 * checkpoint + 3 * state)
    assert found["retrain"] == pytest.approx(launch + 8 * (once + steps * step + checkpoint + 3 * state))


def test_each_phase_of_scoring_grows_as_its_work_does(config: Config) -> None:
    found = foretell(trial(3200, 400), config, in_train=3200).seconds["score"]
    own, steps, short = 16 / 2, 10 * 80 - 1, 10 - 1  # chunks of a rank; steps of a fold model, here and in the trial
    expected = 3.0 + 2.0  # the process, and what reading all points took the trainer
    expected += 0.01 * 8**2 + 3.0 + 0.1 * steps / short + 0.8 + 0.2 * 8
    expected += 0.3 * own + 0.7 + 0.5 * 1000 / 400 + 0.9 + 0.4 * own
    assert found == pytest.approx(expected)


def test_a_second_round_that_the_trial_found_no_cause_for_is_counted_as_the_first(config: Config) -> None:
    both = trial(3200, 400)
    seconds = {name: value for name, value in SCORED.items() if not name.endswith("round 2")}
    once = replace(both, score=replace(both.score, launched=Launched(3.0, spent(seconds), REPORTED)))
    more = (0.04 - 0.06) * 799 / 9 + 3.0 + 0.8 + 0.2 * 8
    difference = foretell(once, config, 3200).seconds["score"] - foretell(both, config, 3200).seconds["score"]
    assert difference == pytest.approx(more)


def test_an_estimator_that_holds_the_factors_of_all_points_grows_beyond_what_each_point_takes(config: Config) -> None:
    kronecker = foretell(trial(3200, 400), config, in_train=3200)
    scoring = config.scoring.model_copy(update={"estimator": "dual"})
    dual = foretell(trial(3200, 400), config.model_copy(update={"scoring": scoring}), in_train=3200)
    more = 0.7 * (8**3 - 1) + 0.9 * (8 - 1) + 0.4 * 8 * (8 - 1)
    assert dual.seconds["score"] - kronecker.seconds["score"] == pytest.approx(more)
    assert dual.memory["score"] - kronecker.memory["score"] == 5 * MEGABYTE * (8**2 - 1)


def test_memory_of_scoring_grows_by_what_is_held_of_each_point_or_by_the_neighbours(config: Config) -> None:
    held = foretell(trial(3200, 400), config, in_train=3200)
    assert held.memory == {"train": 500 * MEGABYTE, "score": (500 + 21 * 7) * MEGABYTE}
    wide = trial(3200, 400)
    wide = replace(wide, score=replace(wide.score, input_bytes=2 * MEGABYTE // 10))
    neighbours = 3 * 3200 * 2 * MEGABYTE // 10
    assert foretell(wide, config, in_train=3200).memory["score"] == 500 * MEGABYTE + neighbours


def test_disk_is_what_stays_and_above_it_what_is_kept_of_a_stage_under_way(config: Config) -> None:
    found = foretell(trial(3200, 400), config, in_train=3200)
    assert found.kept == (2 + 8) * MEGABYTE + 9 * 500 + 10 * 1000 * 3 + 3200 * 1000
    assert found.disk - found.kept == max(6 * MEGABYTE, 5 * MEGABYTE + 3200 * 1100)
    cache = config.scoring.factor_cache.model_copy(update={"disk": 100})
    more = config.model_copy(update={"scoring": config.scoring.model_copy(update={"factor_cache": cache})})
    assert foretell(trial(3200, 400), more, in_train=3200).disk - found.disk >= 2 * 100 * 2**20 - MEGABYTE


def test_a_trainer_of_ones_own_is_not_foretold(config: Config) -> None:
    training = config.training.model_copy(update={"command": ("python", "own.py")})
    found = foretell(trial(3200, 400), config.model_copy(update={"training": training}), in_train=3200)
    assert set(found.seconds) == set(found.memory) == {"score"}


def test_a_forecast_is_kept_for_its_settings_alone(config: Config) -> None:
    forecast = foretell(trial(3200, 400), config, in_train=3200)
    config.workspace.mkdir()
    assert kept(config) is None
    keep(config, forecast)
    assert kept(config) == forecast
    other = config.model_copy(update={"scoring": config.scoring.model_copy(update={"chunk": 50})})
    assert kept(other) is None


def test_a_sample_is_spread_over_the_set_and_reads_as_the_set_does(config: Config) -> None:
    points = load_workload(config).points()
    sample = Sample(points, 10)
    rows = [len(points) * at // 10 for at in range(10)]
    assert sample.ids == [points.ids[row] for row in rows]
    assert [points.labels[row] for row in rows] == sample.labels
    assert len(Sample(points, 10**9)) == len(points)


def test_checkpoints_that_lie_close_are_as_many_in_the_trial_as_in_the_cycle(config: Config) -> None:
    training = config.training.model_copy(update={"checkpoints": (0.97, 0.98, 0.99, 1.0)})
    assert _steps(config, planned=1000) == STEPS
    close = _steps(config.model_copy(update={"training": training}), planned=1000)
    assert len(save_points(training, close)) == 4


def test_memory_is_bounded_by_the_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bound = tmp_path / "memory.max"
    monkeypatch.setattr("flows.outlook.CGROUP", bound)
    machine = memory_here()
    bound.write_text("max\n")
    assert memory_here() == machine
    bound.write_text("123456\n")
    assert memory_here() == 123456


def test_a_workspace_in_use_is_not_tried(config: Config) -> None:
    with workspace(config):
        [found] = outlook(config)
    assert (found.name, found.ok) == ("trial", False)
    assert "works in it; wait or end it" in found.text


@pytest.mark.slow
def test_a_cycle_holds_and_leaves_what_check_foretold(tmp_path: Path) -> None:
    """Seconds are compared by `make bench`, where nothing else runs; memory and disk do not depend on that."""
    file = write_toml(tmp_path, "tiny", training={"ranks": 2}, scoring={"ranks": 2, "chunk": 50})
    checked = tamis("check", file, "--json")
    assert checked.returncode == 0, checked.stderr
    findings = {finding["name"]: finding for finding in json.loads(checked.stdout)}
    assert all(finding["ok"] for finding in findings.values())
    assert {"time", "memory", "disk"} <= findings.keys()
    assert not (tmp_path / "ws" / "trial").exists()
    (tmp_path / "ws" / "trial" / "scores").mkdir(parents=True)  # as a check that was killed leaves it
    done = tamis("run", file, "--json")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "ws" / "trial").exists()
    summary = json.loads(done.stdout)
    compared = {row["what"]: Compared(**row) for row in summary["forecast"]}
    assert {"time to train", "time to score"} <= compared.keys()
    for name in ("memory of a rank that trains", "memory of a rank that scores"):
        assert 1 / 1.5 < compared[name].measured / compared[name].foretold < 1.5
        assert compared[name].said in Path(summary["report"]).read_text()
