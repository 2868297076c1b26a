"""A workload without classes, a language model, through the whole cycle."""

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from mlflow import MlflowClient

from flows.check import require
from flows.config import load
from flows.dataset import manifest_of
from flows.errors import BadInput
from flows.evidence import account_of
from flows.forecast import foretell
from flows.ledger_tables import print_account
from flows.score_file import score_file
from flows.tables import print_summary
from flows.trial import measure
from flows.validation.bench import Extent
from flows.validation.running import validate_file
from flows.workload import seeded_model
from influence import auc
from storage import score_store
from storage.proposals import Proposal
from storage.query_scores import read_queries
from tests.flows.helpers import run_here, turn, write_toml
from tests.flows.little_lm import LittleLM, Texts

LITTLE = f"{Path(__file__).with_name('little_lm.py')}:LittleLM"
SETTINGS: dict[str, dict[str, Any]] = {
    "training": {"epochs": 20, "learning_rate": 1e-2},
    "scoring": {"chunk": 16, "fisher": "sampled", "exact_head": False, "probe": 0},
    "pruning": {"policies": ["harmful"]},
}
OF_CLASSES = {
    *("predicted", "label", "classification_influence", "suggested_label", "suspicion", "posterior"),
    *("signal_knn", "signal_conformity", "signal_out_of_fold_loss", "mislabeled_q"),
}


@pytest.mark.slow
def test_shuffled_texts_are_found_harmful_and_nothing_says_what_there_is_not(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_toml(here, LITTLE, **SETTINGS)
    summary = turn(file)
    folder = here / "ws" / "cycles" / "000001"
    table, shuffled = score_store.read(folder / "scores"), torch.arange(240) < 24
    assert auc(-torch.tensor(table["influence"].to_pylist()), shuffled) > 0.8
    proposed = Proposal.read(folder).points
    assert sum(point < 24 for point in proposed) >= 0.8 * len(proposed) >= 4

    assert {name for name in table.column_names if table[name].null_count == len(table)} - {"copy_of"} == OF_CLASSES
    assert not any(name.startswith("influence_class") for name in table.column_names)
    queries = read_queries(folder / "scores")
    assert queries is not None
    assert queries["label"].null_count == queries["predicted"].null_count == len(queries)

    assert set(summary.arms) == {"baseline", "challenger", "control"}
    assert all(arm.accuracy is None for arm in summary.arms.values())
    assert not any("class" in check.name for check in summary.checks)
    assert any("group steps of 1" in check.name for check in summary.checks)
    control = _removed(folder / "plans" / "removed-control-seed0.parquet")
    assert _groups(control) == _groups(set(proposed))
    assert control != set(proposed)

    print_summary(summary, as_json=False)
    print_account(account_of(file, str(proposed[0])), as_json=False)
    said = capsys.readouterr().out + (folder / "report.html").read_text()
    client = MlflowClient(f"sqlite:///{here / 'ws' / 'mlflow.db'}")
    everywhere = [experiment.experiment_id for experiment in client.search_experiments()]
    [run] = client.search_runs(everywhere, "tags.`tamis.cycle` = '1'")
    metrics = set(run.data.metrics)
    assert "holdout_loss_challenger" in metrics
    assert not any("accuracy" in metric for metric in metrics)
    for silly in ("None", "accuracy", "mislabeled", "suggested label", "wrong label", "class -1"):
        assert silly not in said + run.data.tags["mlflow.note.content"], silly


def _removed(file: Path) -> set[int]:
    return set(pq.read_table(file)["point_id"].to_pylist())


def _groups(points: set[int]) -> Counter[str]:
    groups = Texts(0, 240).groups
    return Counter(groups[point] for point in points)


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pa.Table]:
    """Scores of one trained model: as they are, with padding, in other batches, of points in another order."""
    folder = tmp_path_factory.mktemp("scored")
    workload, checkpoint = LittleLM(), folder / "model.safetensors"
    model, everyone = seeded_model(workload, 0), workload.points()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        workload.loss(model, workload.collate(everyone.samples)).mean().backward()
        optimizer.step()
    safetensors.torch.save_file(model.state_dict(), checkpoint)
    ways = {
        "plain": ({}, 16),
        "padded": ({"padding": 9}, 16),
        "other batches": ({}, 11),
        "other order": ({"backwards": True}, 16),
    }
    return {name: _scores(folder / name, checkpoint, options, chunk) for name, (options, chunk) in ways.items()}


def _scores(folder: Path, checkpoint: Path, options: dict[str, Any], chunk: int) -> pa.Table:
    settings = SETTINGS | {"scoring": SETTINGS["scoring"] | {"chunk": chunk}}
    file = write_toml(folder, LITTLE, options, **settings)
    score_file(file, checkpoint, folder / "scores.parquet")
    return pq.read_table(folder / "scores.parquet").sort_by("point_id")


@pytest.mark.parametrize("way", ["padded", "other batches", "other order"])
def test_no_score_column_depends_on_padding_batches_or_the_order_of_points(
    scored: dict[str, pa.Table], way: str
) -> None:
    plain, other = scored["plain"], scored[way]
    numbers = [name for name in plain.column_names if pa.types.is_floating(plain[name].type) and name not in OF_CLASSES]
    assert {"influence", "influence_se", "self_influence", "relative_theta", "loss", "signal_grand"} <= set(numbers)
    for name in numbers:
        one, same = (torch.tensor(table[name].to_pylist(), dtype=torch.float64) for table in (plain, other))
        assert (one - same).norm() <= 1e-5 * one.norm(), name


def test_settings_that_need_classes_are_refused_in_one_line_that_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as refused:
        require(load(write_toml(tmp_path, LITTLE)))
    said = str(refused.value)
    assert "\n" not in said
    for part in ('policies = ["harmful"]', "exact_head = false", 'fisher = "sampled"', "chunk = 16 or less"):
        assert part in said
    assert "prune_while_learning" not in said
    assert "mislabeled_action" not in said
    pruning = SETTINGS["pruning"] | {"mislabeled_action": "relabel"}
    with pytest.raises(BadInput, match=r'need: set pruning\.mislabeled_action = "remove"$'):
        require(load(write_toml(tmp_path, LITTLE, **SETTINGS | {"pruning": pruning})))
    require(load(write_toml(tmp_path, LITTLE, **SETTINGS)))


def test_a_cycle_is_foretold_without_what_it_leaves_out(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.trial.run_ranks", run_here)
    config = load(write_toml(here, LITTLE, **SETTINGS))
    trial = measure(config, require(config), here / "trial", lambda _: None)
    assert trial.score.classes == trial.score.input_bytes == trial.score.parts_bytes["fold"] == 0
    assert not any("out-of-fold" in phase for phase in trial.score.launched.spent.seconds)
    found = foretell(trial, config, 240)
    assert found.seconds["score"] > 0
    assert found.memory["score"] > 0


def test_a_study_that_needs_classes_is_refused(tmp_path: Path) -> None:
    file = write_toml(tmp_path, LITTLE, **SETTINGS)
    with pytest.raises(BadInput, match="--study pruning: it needs classes; without them give lds, loo"):
        validate_file(file, ["pruning"], Extent())


def test_a_text_with_another_word_is_another_point_and_has_no_label() -> None:
    texts = Texts(0, 5)
    before = manifest_of("train", texts).table
    texts.samples[2] = texts.samples[2].clone()
    texts.samples[2][3] += 1
    after = manifest_of("train", texts).table
    assert before["label"].null_count == 5
    assert pc.not_equal(before["content"], after["content"]).to_pylist() == [False, False, True, False, False]


@pytest.mark.slow
def test_the_estimator_is_judged_without_classes(here: Path) -> None:
    file = write_toml(here, LITTLE, **SETTINGS)
    found = validate_file(file, ["lds"], Extent(subsets=4, retrains=2, seeds=1))
    assert [study.name for study in found.studies] == ["lds"]
