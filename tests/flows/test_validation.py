"""`tamis validate`: studies on planted models, one real model, a pool that is killed, and the whole command."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest
import torch
from mlflow import MlflowClient
from torch import Tensor, nn

from flows.config import load
from flows.errors import BadInput
from flows.launch import Progress
from flows.ranks.order import Order
from flows.validation import lds, loo, memorization, mislabeled, pruning
from flows.validation.bench import Bench, Extent, Scores, trained
from flows.validation.models import Outcome, retrain
from flows.validation.pool import Pool
from flows.validation.results import Study
from flows.validation.running import validate_file
from flows.validation.setting import Setting, read_setting
from flows.validation.subsets import Retraining, draw_subsets, subset_retrainings
from influence import PairScores
from influence.curvature.base import Own
from tests.flows.helpers import tamis, turn, write_toml

POINTS, QUERIES = 120, 60


def quiet(_: Progress) -> None:
    pass


def blobs(folder: Path, **options: Any) -> Setting:
    return read_setting(load(write_toml(folder, options=options)))


class Additive:
    """Stands in for the pool: every query's loss is the sum of what the points left out were worth to it."""

    def __init__(self, influence: Tensor) -> None:
        self.influence = influence
        self.jobs: list[Retraining] = []

    def outcomes(self, phase: str, jobs: Sequence[Retraining]) -> Outcome:
        self.jobs += jobs
        gone = torch.zeros(len(jobs), POINTS, dtype=torch.float64)
        for row, job in zip(gone, jobs):
            row[[*job.left_out, *([] if job.skipped is None else [job.skipped])]] = 1
        loss = 5 + gone @ self.influence
        memorized = torch.linspace(0, 2, POINTS)  # a point that was left out has this loss, one that was seen has none
        return Outcome(gone * memorized, gone * memorized < 1, loss, loss < 5)


def planted(folder: Path, scored: Tensor | None = None) -> tuple[Bench, Additive]:
    """A bench whose models obey an additive table, judged by the scores given, else by the table itself."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(POINTS, QUERIES, generator=generator, dtype=torch.float64)
    pool = Additive(table)
    own = Own(torch.linspace(0, 2, POINTS, dtype=torch.float64))
    influence = table if scored is None else scored
    scores = Scores(PairScores(influence, influence, own), torch.randn(POINTS, QUERIES, generator=generator), {})
    setting = blobs(folder)
    bench = SimpleNamespace(setting=setting, extent=Extent(), pool=pool, scores=scores, checkpoints=trained(setting))
    return cast(Bench, bench), pool


def value(study: Study, signal: str, measure: str, share: float | None = None) -> float:
    (found,) = [r.value for r in study.rows if (r.signal, r.measure, r.share) == (signal, measure, share)]
    return found


def test_lds_of_additive_models_is_one_for_their_table_and_about_zero_for_unrelated_scores(tmp_path: Path) -> None:
    found = lds.study(planted(tmp_path)[0])
    assert value(found, "influence", "LDS") == pytest.approx(1)
    assert value(found, "noise ceiling", "LDS") == pytest.approx(1)
    assert abs(value(found, "gradient dot", "LDS")) < 0.1  # 60 correlations of sd .1 over 100 subsets: 8 sd


def test_loo_compares_the_point_left_out_with_the_same_seeds_trained_on_everything(tmp_path: Path) -> None:
    bench, pool = planted(tmp_path)
    found = loo.study(bench)
    assert value(found, "influence", "Pearson") == pytest.approx(1)
    assert value(found, "influence", "Spearman") == pytest.approx(1)
    assert abs(value(found, "gradient dot", "Pearson")) < 0.1  # 2,400 pairs: sd .02
    whole = {job.seed for job in pool.jobs if job.skipped is None}
    assert len(whole) == 5
    assert {job.seed for job in pool.jobs} == whole
    assert {job.steps for job in pool.jobs} == {bench.setting.steps}


def test_pruning_takes_influence_from_one_half_of_the_queries_and_judges_on_the_other(tmp_path: Path) -> None:
    measured, judging = blobs(tmp_path).halves
    assert torch.cat([measured, judging]).sort().values.tolist() == list(range(QUERIES))
    generator = torch.Generator().manual_seed(1)
    scored = torch.randn(POINTS, QUERIES, generator=generator, dtype=torch.float64)
    first = _pruned_by_influence(tmp_path, scored)
    scored[:, judging] = 1e6  # would turn every ranking round if it were read
    assert _pruned_by_influence(tmp_path, scored) == first
    harm = scored[:, measured].mean(1).argsort(stable=True)
    assert first[0] == tuple(sorted(harm[:6].tolist()))  # 5 % of 120


def _pruned_by_influence(folder: Path, scored: Tensor) -> list[tuple[int, ...]]:
    bench, pool = planted(folder, scored)
    pruning.study(bench)
    return [job.left_out for job in pool.jobs[3:15:3]]  # after the 3 seeds of nothing removed, 4 shares of 3 seeds


def test_pruning_draws_random_points_anew_for_each_seed_and_keeps_the_steps(tmp_path: Path) -> None:
    bench, pool = planted(tmp_path)
    found = pruning.study(bench)
    random = [job.left_out for job in pool.jobs[15:18]]  # after nothing removed and influence
    assert len(set(random)) == 3
    assert {len(gone) for gone in random} == {6}
    assert {job.steps for job in pool.jobs} == {bench.setting.steps}
    at_ten = {signal: value(found, signal, "loss (nats)", 0.1) for signal in ("influence", "random")}
    assert value(found, "influence", "loss below random (nats)", 0.1) == pytest.approx(
        at_ten["random"] - at_ten["influence"]
    )


def test_memorization_of_planted_models_is_ranked_as_it_was_planted(tmp_path: Path) -> None:
    found = memorization.study(planted(tmp_path)[0])
    assert value(found, "self-influence", "Spearman with memorization") == pytest.approx(1)
    # the oracle's other points are noise about the mean of 60 queries: sd 1 against 10 per root of 100 models
    assert value(found, "influence", "Spearman with influence on the mean query") > 0.3


def test_every_proxy_calls_wrong_labels_memorized(tmp_path: Path) -> None:
    setting = blobs(tmp_path)
    assert setting.wrong is not None
    found = memorization.proxies(setting, trained(setting))
    assert len(found) == 7
    means = {name: (float(one[setting.wrong].mean()), float(one[~setting.wrong].mean())) for name, one in found.items()}
    assert all(wrong > right for wrong, right in means.values()), means  # 25 epochs learn what three clouds can tell


def test_proxies_leave_the_model_as_it_was(tmp_path: Path) -> None:
    setting = blobs(tmp_path)
    model = trained(setting)[-1]
    before = [parameter.clone() for parameter in model.parameters()]
    memorization.proxies(setting, [model])
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters()))


def test_the_inputs_of_a_batch_are_its_only_floating_tensor() -> None:
    pixels, tokens = torch.zeros(2), torch.zeros(2, dtype=torch.int64)
    assert memorization._floating([tokens, pixels]) == 1
    assert memorization._floating([tokens, tokens]) is memorization._floating([pixels, pixels]) is None


def test_mislabeled_ranks_by_the_given_signals_larger_being_more_suspicious(tmp_path: Path) -> None:
    bench, _ = planted(tmp_path)
    wrong = bench.setting.wrong
    assert wrong is not None
    assert int(wrong.sum()) == 12
    suspects = {"suspicion": wrong.double(), "loss": -wrong.double()}
    scores = Scores(bench.scores.influence, bench.scores.gradient_dot, suspects)
    found = mislabeled.study(cast(Bench, SimpleNamespace(setting=bench.setting, scores=scores)))
    assert value(found, "suspicion", "AUC") == value(found, "suspicion", "AP") == 1
    assert value(found, "loss", "AUC") == 0


def test_more_subsets_or_retrainings_keep_the_models_there_are(tmp_path: Path) -> None:
    training = blobs(tmp_path).config.training
    few, more = draw_subsets(50, 3, 0.5, seed=0), draw_subsets(50, 8, 0.5, seed=0)
    assert torch.equal(few, more[:3])
    assert few.sum(1).tolist() == [25] * 3
    small, large = set(subset_retrainings(training, few, 2)), set(subset_retrainings(training, more, 4))
    assert small < large
    assert len({job.seed for job in large}) == 32


def test_a_skipped_point_leaves_seed_order_and_batches_as_they_are(tmp_path: Path) -> None:
    setting, place = blobs(tmp_path), 5
    training = setting.config.training
    torch.manual_seed(3)
    model: nn.Module = setting.workload.model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay)
    order = Order(torch.arange(POINTS), training.batch_size, 3)
    for _ in range(20):
        optimizer.zero_grad()
        rows = order.next()
        rest = rows[rows != place]
        (setting.workload.loss(model, setting.train.take(rest)).sum() / training.batch_size).backward()
        optimizer.step()
    with torch.no_grad():
        expected = setting.workload.loss(model, setting.queries.take(range(QUERIES)))
    found = retrain(setting, Retraining(3, 20, skipped=place)).query_loss
    torch.testing.assert_close(found, expected)  # sums of 31 and of 32 terms, one 0, differ in the last digits
    assert not torch.equal(found, retrain(setting, Retraining(3, 20)).query_loss)


def test_a_loss_that_is_not_finite_names_the_point(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="the loss of point 77 is not finite"):
        retrain(blobs(tmp_path, fault="nan in scoring"), Retraining(0, 1))


REFUSED: dict[str, tuple[dict[str, Any], tuple[str, ...], str]] = {
    "unknown study": ({}, ("lsd",), "--study lsd: give one of lds, loo, exact-loo"),
    "not convex": ({}, ("exact-loo",), "one Linear layer.*Net has 2 Linear layers"),
    "no wrong label": ({"options": {"wrong": 0}}, ("mislabeled",), r"truth\(\) differs from some given labels"),
    "bad workload": ({"options": {"fault": "reduced"}}, (), "one loss per point"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    toml, studies, message = REFUSED[name]
    file = write_toml(tmp_path, **toml)
    with pytest.raises(BadInput, match=message):
        validate_file(file, studies, Extent())
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("extent", [{"subsets": 3}, {"retrains": 1}, {"seeds": 0}])
def test_too_few_models_are_refused(extent: dict[str, int]) -> None:
    ((name, given),) = extent.items()
    with pytest.raises(BadInput, match=f"--{name} {given}: give at least {given + 1}"):
        Extent(**extent)


def stop_after(count: int) -> Callable[[Progress], None]:
    def show(progress: Progress) -> None:
        if progress.done >= count:
            raise KeyboardInterrupt

    return show


@pytest.mark.slow
def test_an_interrupted_pool_trains_only_the_rest_and_ends_in_the_same_outcomes(tmp_path: Path) -> None:
    setting = blobs(tmp_path)
    jobs = [Retraining(seed, 200, left_out=(seed,)) for seed in range(12)]
    with pytest.raises(KeyboardInterrupt), Pool(setting, tmp_path / "models", stop_after(4)) as pool:
        pool.outcomes("models", jobs)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "models").glob("*.safetensors")}
    assert 4 <= len(kept) < 12
    seen: list[Progress] = []
    with Pool(setting, tmp_path / "models", seen.append) as pool:
        found = pool.outcomes("models", jobs)
    assert seen[0] == Progress("models", len(kept), 12)
    assert seen[-1] == Progress("models", 12, 12)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = Outcome.stack([retrain(setting, job) for job in jobs])
    torch.set_num_threads(threads)
    assert torch.equal(found.query_loss, alone.query_loss)
    assert torch.equal(found.train_correct, alone.train_correct)


@pytest.mark.slow
def test_a_command_killed_in_the_middle_leaves_no_process_and_ends_in_the_same_result(tmp_path: Path) -> None:
    options = ["--study", "lds", "--subsets", "20", "--retrains", "2", "--json"]
    models = {}
    for name in ("whole", "killed"):
        write_toml(tmp_path / name, training={"epochs": 100})
        models[name] = tmp_path / name / "ws" / "validation" / "models"
    whole = tamis("validate", *options, cwd=tmp_path / "whole")
    command = [Path(sys.executable).with_name("tamis"), "validate", *options]
    running = subprocess.Popen(command, cwd=tmp_path / "killed", env=os.environ | {"OMP_NUM_THREADS": "1"})
    while len(list(models["killed"].glob("*.safetensors"))) < 5:
        assert running.poll() is None
        time.sleep(0.02)
    workers = psutil.Process(running.pid).children(recursive=True)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert psutil.wait_procs(workers, timeout=60)[1] == []
    kept = {path.name: path.stat().st_mtime_ns for path in models["killed"].glob("*.safetensors")}
    assert len(kept) < 40
    again = tamis("validate", *options, cwd=tmp_path / "killed")
    assert (whole.returncode, again.returncode) == (0, 0), again.stderr
    assert json.loads(again.stdout)["studies"] == json.loads(whole.stdout)["studies"]
    after = {path.name: path.stat().st_mtime_ns for path in models["killed"].iterdir()}
    assert after.keys() == {path.name for path in models["whole"].iterdir()}
    assert {name: after[name] for name in kept} == kept


@pytest.mark.slow
def test_the_command_validates_the_tiny_digits_and_logs_every_study(tmp_path: Path) -> None:
    file = write_toml(tmp_path, "tiny")
    done = tamis("validate", file, "--subsets", "40", "--retrains", "2", "--seeds", "2")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "ws" / "validation"
    validation = json.loads((folder / "validation.json").read_text())
    names = [study["name"] for study in validation["studies"]]
    assert names == ["lds", "loo", "mislabeled", "pruning", "memorization"]
    for name in names:
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert name in done.stdout
    client = MlflowClient(f"sqlite:///{tmp_path / 'ws' / 'mlflow.db'}")
    (experiment,) = [found for found in client.search_experiments() if found.name == "tiny"]
    runs = {run.data.tags["tamis.study"]: run for run in client.search_runs([experiment.experiment_id])}
    assert runs.keys() == set(names)
    rows = {(row["signal"], row["measure"]): row for study in validation["studies"] for row in study["rows"]}
    logged = runs["mislabeled"].data.metrics["AUC of loss"]
    assert logged == pytest.approx(rows["loss", "AUC"]["value"])
    assert logged > 0.8  # a tenth of the labels is flipped, and 25 epochs on 200 points learn few of them


@pytest.mark.slow
def test_suspicion_is_judged_where_a_cycle_has_scored_this_train_set(here: Path) -> None:
    turn(write_toml(here), dry_run=True)
    for wrong, known in ((12, True), (13, False)):  # the cycle has scored the set with 12 wrong labels
        found = validate_file(write_toml(here, options={"wrong": wrong}), ["mislabeled"], Extent())
        signals = {row.signal: row.value for row in found.studies[0].rows if row.measure == "AUC"}
        assert ("suspicion" in signals) is known
        if known:
            assert signals["suspicion"] > 0.8  # three clouds that hardly overlap


@pytest.mark.slow
def test_the_exact_estimator_finds_exact_leave_one_out_on_a_softmax_regression(tmp_path: Path) -> None:
    file = write_toml(
        tmp_path,
        "digits",
        options={"hidden": [], "points": 200, "queries": 100},
        training={"weight_decay": 0.01},
        scoring={"estimator": "dense", "damping": {"kind": "absolute", "value": 0.01}},
    )
    done = tamis("validate", file, "--study", "exact-loo", "--json")
    assert done.returncode == 0, done.stderr
    (study,) = json.loads(done.stdout)["studies"]
    # to first order; what is left is the curvature's change without the point
    assert {row["measure"]: row["value"] > 0.99 for row in study["rows"]} == {"Pearson": True, "Spearman": True}
