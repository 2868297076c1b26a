"""Scores of a model that computes in bfloat16: what the rounding of its passes does to them, and no more."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy.stats import spearmanr

from flows.foreseen import METHODS, column
from flows.ranks import attribution
from flows.trust import Probe
from storage import score_store
from tests.flows.helpers import turn, write_toml
from tests.flows.test_preview import preview_plan
from tests.flows.test_ranks import here as run
from tests.flows.test_ranks import score_plan, train_plan

WAYS: dict[str, dict[str, Any]] = {
    "all blocks": {"probe": 10},
    "the head alone": {"blocks": {"last": 1}, "exact_head": False, "probe": 0},
    "partitioned": {"placement": "partitioned", "probe": 0},
}


@pytest.fixture(scope="module")
def trained(one_rank: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    run("train", train_plan(folder))
    return folder


def scored(folder: Path, trained: Path, precision: str, **scoring: Any) -> pa.Table:
    plan = score_plan(folder, trained, precision=precision, folds=2, repeats=1, neighbours=5, **scoring)
    run("score", plan)
    score_store.finish(plan.folder, 5)
    return pa.concat_tables([pq.read_table(shard) for shard in sorted(plan.folder.glob("part-*.parquet"))])


@pytest.mark.parametrize("way", WAYS)
def test_scores_in_bfloat16_are_those_of_float32_but_for_rounding(tmp_path: Path, trained: Path, way: str) -> None:
    single = scored(tmp_path / "fp32", trained, "fp32", **WAYS[way])
    half = scored(tmp_path / "bf16", trained, "bf16", **WAYS[way])
    for name in ("loss", "influence", "self_influence", "classification_influence"):
        found, truth = (np.array(table[name].to_pylist()) for table in (half, single))
        assert np.linalg.norm(found - truth) < 0.05 * np.linalg.norm(truth)  # 8 bits, .004; some tens of roundings
        assert (found != truth).mean() > 0.9, "and the passes are rounded"
        assert spearmanr(found, truth).statistic > 0.99
    for name in ("suspicion", "signal_out_of_fold_loss"):  # of models that are not scored
        assert half[name].equals(single[name])


def test_the_probe_measures_what_bfloat16_costs_against_the_whole_model_in_float32(
    tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[torch.dtype] = []
    right = attribution.Attribution.__init__

    def spy(self: Any, model: torch.nn.Module, *given: Any) -> None:
        read.append(next(model.parameters()).dtype)
        right(self, model, *given)

    monkeypatch.setattr(attribution.Attribution, "__init__", spy)
    probes = {}
    for precision in ("fp32", "bf16"):
        scored(tmp_path / precision, trained, precision, blocks=["*"], estimator="ekfac", probe=10)
        extra = score_store.load(tmp_path / precision / "scores").metadata.extra  # type: ignore[union-attr]
        probes[precision] = Probe(**extra["probe"])  # type: ignore[arg-type]
    assert read == [torch.float32] * 2 + [torch.bfloat16] * 2
    assert probes["bf16"].blocks == probes["fp32"].blocks, "the truth is the same"
    assert probes["bf16"].estimator != probes["fp32"].estimator


def test_a_preview_in_bfloat16_foretells_what_one_in_float32_does(tmp_path: Path, trained: Path) -> None:
    found = {}
    for precision in ("fp32", "bf16"):
        plan = preview_plan(tmp_path / precision, trained, relabel=3, precision=precision)
        run("preview", plan)
        found[precision] = pq.read_table(plan.file)
    before = {name: np.array(table[column("loss", "")].to_pylist()) for name, table in found.items()}
    np.testing.assert_array_equal(before["bf16"], before["fp32"])  # the queries are asked in float32
    [influence, _] = METHODS
    moved = {
        name: np.array(table[column("loss", influence)].to_pylist()) - before[name] for name, table in found.items()
    }
    assert np.linalg.norm(moved["bf16"] - moved["fp32"]) < 0.05 * np.linalg.norm(moved["fp32"])


def test_a_change_of_precision_scores_anew_and_one_of_device_or_backend_does_nothing_again(here: Path) -> None:
    def state() -> dict[str, list[int]]:
        cycle = here / "ws" / "cycles" / "000001"
        return {
            folder: [path.stat().st_mtime_ns for path in sorted((cycle / folder).rglob("*")) if path.is_file()]
            for folder in ("checkpoints", "scores")
        }

    scoring = {"probe": 0, "folds": 2}
    first = turn(write_toml(here, scoring=scoring), dry_run=True)
    before = state()
    assert all(before.values())
    moved = turn(write_toml(here, scoring=scoring, launch={"device": "cpu", "backend": "gloo"}), dry_run=True)
    assert (state(), moved.proposal) == (before, first.proposal)
    turn(write_toml(here, scoring=scoring | {"precision": "bf16"}), dry_run=True)
    after = state()
    assert after["checkpoints"] == before["checkpoints"]
    assert not set(after["scores"]) & set(before["scores"])
