"""Transformers that are trained and scored in bfloat16: what comes out is float32, and differs by rounding alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from flows.score_file import score_file
from storage import checkpoints
from tests.flows.helpers import write_toml
from tests.flows.test_causal_lm import LLAMA
from tests.flows.test_ranks import STEPS, here, train_plan, weights
from tests.flows.texts import LENGTH, save_bert, sentences, write_rows

SCORING: dict[str, Any] = {"damping": {"kind": "absolute", "value": 0.01}, "probe": 0, "chunk": 16}
OF_WORDS: dict[str, Any] = {"fisher": "empirical", "exact_head": False, "blocks": {"last": 4}}


@pytest.mark.parametrize("entry", ["text_classification", "causal_lm"])
def test_a_transformer_is_trained_and_scored_in_bfloat16(one_rank: None, tmp_path: Path, entry: str) -> None:
    write_rows(tmp_path / "texts.jsonl", sentences(60))
    bert, words = str(save_bert(tmp_path / "bert")), entry == "causal_lm"
    own = {"config": LLAMA, "tokenizer": bert} if words else {"model": bert, "head": "mean", "train_layers": 2}
    options = {"data": "texts.jsonl", "id": "id", "max_length": LENGTH, "query_share": 0.2} | own
    here("train", train_plan(tmp_path, entry, options, precision="bf16", learning_rate=0.003))
    tensors = [torch.from_numpy(value) for value in weights(tmp_path).values()]
    assert all(value.equal(value.bfloat16().float()) for value in tensors if value.is_floating_point())
    scores = {}
    for precision in ("fp32", "bf16"):
        scoring = SCORING | (OF_WORDS if words else {}) | {"precision": precision}
        file = write_toml(tmp_path, entry, options, scoring=scoring, pruning={"policies": ["harmful"]})
        checkpoint = tmp_path / "model" / f"step-{STEPS:06d}" / checkpoints.TENSORS
        scores[precision] = pq.read_table(score_file(file, checkpoint, tmp_path / "scores.parquet").file)
    for name in ("loss", "influence", "self_influence"):
        found, truth = (np.array(scores[precision][name].to_pylist()) for precision in ("bf16", "fp32"))
        assert np.linalg.norm(found - truth) < 0.1 * np.linalg.norm(truth), name  # 8 bits, .004; some tens of roundings
        assert (found != truth).mean() > 0.9, "and the passes are rounded"
