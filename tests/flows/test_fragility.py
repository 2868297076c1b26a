"""`tamis validate --fragility`: what moves is called fragile, what stands is not; a cycle warns of its own alone."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from flows.config import load
from flows.validation import fragility, lds
from flows.validation.bench import Bench, Extent, Scores, trained
from flows.validation.estimators import configured, swept
from flows.validation.fragility import AGREEMENT, CONFIGURED, TRUTH, Fragility
from flows.validation.pool import Pool
from flows.validation.publication import strips
from flows.validation.setting import Setting, read_setting
from flows.validation.verdict import Verdict, settings_digest, warning
from flows.workloads.digits import Digits
from influence import EKFAC, Damping, Influence, InfluenceError, PairScores, Task, factor_mask, select
from influence.curvature.base import Own
from influence.fragility import Spread, rank_agreement, spread
from tests.flows.helpers import tamis, turn, write_toml
from tests.flows.test_validation import POINTS, QUERIES, Additive, quiet

TABLE = torch.randn(POINTS, QUERIES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def blobs(folder: Path, **sections: Any) -> Setting:
    """A setting of 3 epochs of 4 batches, saved after 6 of them and at the end."""
    training = {"epochs": 3, **sections.pop("training", {})}
    return read_setting(load(write_toml(folder, training=training, **sections)))


def planted(setting: Setting, moved: str = "") -> tuple[Bench, Additive]:
    """A bench whose models obey one table, which its estimator knows but for one change that turns it round."""

    def sweep(given: Setting, checkpoints: Sequence[nn.Module], times: Sequence[float]) -> Tensor:
        grid = TABLE.expand(len(checkpoints), len(times), POINTS, QUERIES).clone()
        if moved == "seed" and given.config.training.seed == setting.config.training.seed + 1:
            grid.neg_()
        if moved.startswith("damping") and float(moved.split()[-1]) in times:
            grid[:, list(times).index(float(moved.split()[-1]))].neg_()
        if moved == "checkpoint" and len(times) > 1:
            grid[0] *= -0.5  # the sum keeps its order
        return grid

    pool = Additive(TABLE)
    bench = SimpleNamespace(setting=setting, extent=Extent(), checkpoints=trained(setting), sweep=sweep, pool=pool)
    bench.show, bench.scores = quiet, Scores(PairScores(TABLE, TABLE, Own(TABLE[:, 0])), TABLE, {})
    return cast(Bench, bench), pool


def test_agreement_is_of_ranks_query_by_query() -> None:
    varied = TABLE.exp()
    varied[:, 1] *= -1
    varied[:, 2] = 3.0
    found = rank_agreement(varied, TABLE)
    torch.testing.assert_close(found[:4], torch.tensor([1.0, -1.0, 0.0, 1.0], dtype=torch.float64))
    with pytest.raises(InfluenceError, match="of the same points and queries"):
        rank_agreement(TABLE, TABLE.T)


def test_a_spread_tells_what_a_mean_hides() -> None:
    values = torch.cat([torch.full((80,), 0.9), torch.full((20,), -0.8)])
    found = spread(values, 0.5)
    assert (found.median, found.low, found.high) == pytest.approx((0.9, -0.8, 0.9))
    assert found.below == pytest.approx(0.2)
    assert values.mean() > 0.5


@pytest.mark.parametrize("moved", ["damping x 0.3", "damping x 3", "checkpoint 6 alone", "seed 1"])
def test_scores_that_turn_round_with_a_detail_are_fragile(tmp_path: Path, moved: str) -> None:
    bench, _ = planted(blobs(tmp_path), moved if moved.startswith("damping") else moved.split()[0])
    verdict = fragility.measure(bench, truth=False).verdict
    assert verdict.fragile
    assert verdict.worst == moved
    assert verdict.agreement[moved].median == pytest.approx(-1)
    assert f"fragile: with {moved}, " in verdict.sentence


@pytest.mark.parametrize("moved", ["", "damping x 10", "damping x 0.1"])
def test_scores_that_stand_are_not_fragile_and_a_damping_far_off_is_told_but_not_judged(
    tmp_path: Path, moved: str
) -> None:
    bench, _ = planted(blobs(tmp_path), moved)
    verdict = fragility.measure(bench, truth=False).verdict
    assert not verdict.fragile
    medians = {name: one.median for name, one in verdict.agreement.items()}
    assert medians == pytest.approx({name: -1.0 if name == moved else 1.0 for name in medians})


def test_the_truth_is_that_of_the_study_lds_and_is_given_where_the_training_is_the_same(tmp_path: Path) -> None:
    bench, pool = planted(blobs(tmp_path), "damping x 10")
    lds.study(bench)
    asked = set(pool.jobs)
    found = fragility.measure(bench, truth=True)
    assert set(pool.jobs) == asked
    medians = {name: one.median for name, one in found.verdict.lds.items()}
    assert medians.pop("damping x 10") == pytest.approx(-1)
    assert set(medians) == {CONFIGURED, "damping x 0.1", "damping x 0.3", "damping x 3"} | {
        name for name in medians if name.startswith("checkpoint")
    }
    assert all(median == pytest.approx(1) for median in medians.values())


def test_what_cannot_be_varied_is_said(tmp_path: Path) -> None:
    damping = {"damping": {"kind": "absolute", "value": 0.1}}
    bench, _ = planted(blobs(tmp_path, training={"weight_decay": 0.0, "checkpoints": [1.0]}, scoring=damping))
    found = fragility.measure(bench, truth=False)
    assert found.verdict.skipped == ("weight decay (it is 0)", "depth and width (the workload offers no variants())")
    assert not any(name.startswith(("checkpoint", "weight")) for name in found.verdict.agreement)
    assert all(line in fragility.study(found).protocol for line in found.verdict.skipped)


def test_a_sweep_is_the_configured_estimator_at_other_dampings(tmp_path: Path) -> None:
    for name, kind, at in (("ekfac", "absolute", 0.05), ("dense", "mean_eig", 0.1)):
        one, three = (
            blobs(tmp_path / name, scoring={"estimator": name, "damping": {"kind": kind, "value": by * at}})
            for by in (1, 3)
        )
        models = trained(one)
        grid = swept(one, models, (1.0, 3.0))
        for setting, found in ((one, grid[:, 0]), (three, grid[:, 1])):
            torch.testing.assert_close(found.sum(0), configured(setting)(models).influence)


def test_a_validation_compresses_as_the_configuration_says(tmp_path: Path) -> None:
    setting = blobs(tmp_path, scoring={"compression": {"kind": "mask", "ratio": 2.0}, "exact_head": False})
    models, workload = trained(setting), setting.workload
    train, queries = (one.take(torch.arange(len(one))) for one in (setting.train, setting.queries))
    expected = torch.zeros(len(setting.train), len(setting.queries), dtype=torch.float64)
    for draw, model in enumerate(models):  # of the seed 0
        small = factor_mask(blocks := select(model), 2.0, draw)
        task = Task(workload.logits, workload.labels)
        with Influence(model, task, EKFAC(small.blocks), blocks, compressor=small) as influence:
            influence.fit([train], Damping("absolute", setting.config.training.weight_decay))
            expected += influence.pairs([train], [queries]).influence
    found = configured(setting)(models).influence
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)  # float32 sums in other batches


def test_three_times_the_horizon_damping_is_three_times_what_is_added(tmp_path: Path) -> None:
    setting = blobs(tmp_path, scoring={"estimator": "dense"})
    training = setting.config.training
    added = 1 / (setting.steps * training.learning_rate) + training.weight_decay
    same = blobs(tmp_path / "x", scoring={"estimator": "dense", "damping": {"kind": "absolute", "value": 3 * added}})
    models = trained(setting)
    torch.testing.assert_close(swept(setting, models, (3.0,))[:, 0].sum(0), configured(same)(models).influence)


def test_a_linear_model_trained_to_convergence_is_not_fragile_to_its_checkpoint(tmp_path: Path) -> None:
    def at_the_end(epochs: int) -> float:
        file = write_toml(
            tmp_path / str(epochs),
            "digits",
            options={"hidden": [], "points": 200, "queries": 60},
            training={"epochs": epochs, "batch_size": 200, "weight_decay": 1.0, "learning_rate": 0.05},
        )
        setting = read_setting(load(file))
        bench = Bench(setting, Extent(), Pool(setting, tmp_path / "models", quiet), quiet)
        verdict = fragility.measure(bench, truth=False).verdict
        checkpoints = [name for name in verdict.judged if name.startswith("checkpoint")]
        assert len(checkpoints) == 2
        return min(verdict.agreement[name].median for name in checkpoints)

    converged = at_the_end(200)  # steps on all points; what the start was fades by e every 1 / (.05 * 1) of them
    assert converged > 0.99
    assert at_the_end(4) < converged


def test_built_in_workloads_offer_other_depths_and_widths_of_the_same_data(tmp_path: Path) -> None:
    digits = Digits(points=50, queries=20, hidden=(8, 4))
    sizes = {
        name: [layer.out_features for layer in cast(nn.Sequential, other.model()) if isinstance(layer, nn.Linear)]
        for name, other in digits.variants().items()
    }
    assert sizes == {
        "half the width": [4, 2, 10],
        "twice the width": [16, 8, 10],
        "a layer less": [8, 10],
        "a layer more": [8, 4, 4, 10],
    }
    assert all(other.points().ids == digits.points().ids for other in digits.variants().values())
    assert Digits(points=50, queries=20, hidden=()).variants() == {}


def test_a_model_without_the_configured_blocks_is_skipped_by_name(tmp_path: Path) -> None:
    file = write_toml(tmp_path, "tiny", training={"epochs": 2}, scoring={"blocks": ["2"]})
    setting = read_setting(load(file))
    found = fragility.measure(Bench(setting, Extent(), Pool(setting, tmp_path, quiet), quiet), truth=False)
    (line,) = found.verdict.skipped
    assert line.startswith("model, a layer less (")  # one layer, named 0
    assert {"model, half the width", "model, twice the width", "model, a layer more"} < set(found.verdict.agreement)


def verdict_on(setting: Setting, median: float) -> Verdict:
    settings = settings_digest(setting.config, setting.workload)
    return Verdict(settings, 0.5, ("seed 1",), {"seed 1": Spread(median, 0.1, 0.5, 0.8)}, {}, ())


def warned(setting: Setting) -> str:
    return warning(setting.config, setting.workload)


def test_the_warning_is_of_these_very_settings_and_of_a_fragile_verdict_alone(tmp_path: Path) -> None:
    setting = blobs(tmp_path)
    folder = setting.config.workspace / "validation"
    folder.mkdir(parents=True)
    assert warned(setting) == ""
    verdict_on(setting, 0.4).write(folder)
    assert warned(setting).startswith("WARNING, fragile: with seed 1, ")
    for section, change in (
        ("training", {"epochs": 26}),
        ("scoring", {"fisher": "empirical"}),
        ("options", {"wrong": 11}),
    ):
        assert warned(blobs(tmp_path, **{section: change})) == "", section
    assert warned(blobs(tmp_path, scoring={"chunk": 60, "probe": 0}))
    verdict_on(setting, 0.6).write(folder)
    assert warned(setting) == ""


@pytest.mark.slow
def test_a_cycle_shows_the_warning_in_one_line_and_drops_it_when_the_settings_change(tmp_path: Path) -> None:
    file = write_toml(tmp_path)
    setting = read_setting(load(file))
    folder = setting.config.workspace / "validation"
    folder.mkdir(parents=True)
    verdict_on(setting, 0.4).write(folder)
    said = "WARNING, fragile: with seed 1, the scores of a query keep a rank correlation of 0.40"
    summary = turn(file, dry_run=True)
    assert summary.fragility.startswith(said)
    assert summary.report.read_text().count(said) == 1
    changed = turn(write_toml(tmp_path, training={"epochs": 30}), dry_run=True)
    assert changed.fragility == ""
    assert "fragile" not in changed.report.read_text()


def test_the_figure_is_a_picture_of_every_query(tmp_path: Path) -> None:
    bench, _ = planted(blobs(tmp_path))
    found = fragility.measure(bench, truth=True)
    assert set(found.by_query) == {AGREEMENT, TRUTH}
    other = {name: torch.full_like(one, 0.2) for name, one in found.by_query[AGREEMENT].items()}
    moved = Fragility(found.verdict, {AGREEMENT: other})
    assert strips(found).startswith(b"\x89PNG")
    assert strips(found) == strips(found) != strips(moved)


@pytest.mark.slow
def test_the_command_writes_verdict_and_figure_and_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    file = write_toml(tmp_path)
    for options, said in ((["--subsets", "3"], "--subsets 3: give at least 4"), (["--study", "x"], "--study x: give")):
        refused = tamis("validate", file, "--fragility", *options)
        assert refused.returncode == 2
        assert refused.stderr.startswith(f"tamis: {said}")
        assert refused.stderr.count("\n") == 1
    done = tamis("validate", file, "--fragility", "--study", "lds", "--subsets", "20", "--retrains", "2", "--json")
    assert done.returncode == 0, done.stderr
    assert [study["name"] for study in json.loads(done.stdout)["studies"]] == ["lds", "fragility"]
    folder = tmp_path / "ws" / "validation"
    (file,) = folder.glob("fragility-*.json")
    kept = json.loads(file.read_text())
    assert kept["fragile"] is (kept["agreement"][kept["worst"]]["median"] < kept["bound"])
    assert set(kept["lds"]) > {"as configured", "damping x 3"}
    assert (folder / "fragility.png").read_bytes().startswith(b"\x89PNG")
