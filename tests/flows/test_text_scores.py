"""No score of a text depends on how its batches are made: the whole table, suspicion and its signals included."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch import Tensor

from flows.agents import Launch
from flows.config import load
from flows.plans import ScorePlan, read_plan, write_plan
from flows.workload import collate_of, load_workload
from flows.workloads.text.tokens import Batch, padded
from storage import score_store
from tests.flows.helpers import run_here, turn, write_toml
from tests.flows.texts import LENGTH, save_bert, sentences, write_rows

OTHER = {"negative": "positive", "positive": "negative"}
ROWS = [row | {"label": OTHER[row["label"]]} if row["id"] % 10 == 0 else row for row in sentences(60)]
SAME = 1e-5
EVIDENCE = {
    *("influence", "influence_se", "classification_influence", "self_influence", "loss", "margin", "suspicion"),
    *("relative_theta", "relative_l", "relative_self", "relative_share", "posterior", "signal_knn"),
    *("signal_out_of_fold_loss", "signal_grand", "harmful_p", "mislabeled_q"),
}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("models") / "bert")


def toml(folder: Path, rows: Sequence[dict[str, Any]], options: dict[str, Any], chunk: int) -> Path:
    file = write_toml(folder, "text_classification", options, scoring={"chunk": chunk, "probe": 0})
    write_rows(folder / "texts.parquet", rows)
    return file


def scored(folder: Path, plan: ScorePlan, file: Path, points: int) -> pa.Table:
    """The points of a plan, scored again by another file's settings."""
    config = load(file)
    again = plan.model_copy(update={"config": config, "logs": folder / "logs", "folder": folder / "scores"})
    run_here(Launch("score", write_plan(again, folder / "score.json"), 1, again.logs, 60.0), lambda _: None)
    score_store.finish(again.folder, -(-points // config.scoring.chunk))
    return score_store.read(again.folder)


def wider(rows: Sequence[Tensor], padding: int) -> Batch:
    """Five positions more than the longest of a batch has."""
    made = padded(rows, padding)
    filled = {"input_ids": padding, "attention_mask": 0}
    return {name: torch.nn.functional.pad(made[name], (0, 5), value=value) for name, value in filled.items()}


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"head": "model"}, id="whole"),
        pytest.param({"head": "mean", "train_layers": 1}, id="upper", marks=pytest.mark.slow),
    ],
)
def test_no_score_column_of_a_text_depends_on_padding_batches_or_the_order_of_rows(
    here: Path, bert: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"data": "texts.parquet", "model": str(bert), "id": "id", "max_length": LENGTH} | options
    turn(toml(here, ROWS, given, 16), dry_run=True)
    cycle = here / "ws" / "cycles" / "000001"
    plan, first = read_plan(ScorePlan, cycle / "plans" / "score.json"), score_store.read(cycle / "scores")
    others = {"in chunks of 7": (ROWS, 7), "in reverse": (ROWS[::-1], 16), "padded": (ROWS, 16)}
    numbers = {name for name in first.column_names if pa.types.is_floating(first[name].type)}
    assert numbers > EVIDENCE
    for way, (rows, chunk) in others.items():
        folder = here / way
        file = toml(folder, rows, given, chunk)
        if way == "padded":
            for module in ("tokens", "sets"):
                monkeypatch.setattr(f"flows.workloads.text.{module}.padded", wider)
            text = {"input_ids": torch.ones(3), "labels": 0}
            assert collate_of(load_workload(load(file)))([text])["input_ids"].shape == (1, 8)
        other = scored(folder, plan, file, len(first))
        for name in numbers:
            assert other[name].is_valid().equals(first[name].is_valid()), (way, name)
            one, same = (torch.tensor(table[name].drop_null().to_pylist()).double() for table in (first, other))
            assert (one - same).norm() <= SAME * one.norm(), (way, name)
        assert all(bool(torch.tensor(other[name].to_pylist()).any()) for name in EVIDENCE), way
