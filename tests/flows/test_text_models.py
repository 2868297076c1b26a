"""Any classifier of texts: which kinds of model are taken, whole or from a layer on, and what is said of the others."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from flows.check import check
from flows.config import load
from flows.errors import BadInput
from flows.workload import Batches, collate_of, seeded_model
from flows.workloads.text.classification import TextClassification
from flows.workloads.text.encoder import hidden_of
from tests.flows.encoders import DECODERS, ENTERED, WHOLE, save_classifier
from tests.flows.helpers import write_toml
from tests.flows.texts import LENGTH, sentences, texts_of, write_rows

ROWS = sentences(60)
SETTINGS: dict[str, dict[str, Any]] = {
    "GPT2": {"exact_head": False},  # the head reads every token
    "Llama": {"exact_head": False},
    "DebertaV2": {"blocks": ["*.dense", "classifier"]},  # others read distances, the same for all texts
}


def wrong_with(folder: Path, model: Path, scoring: dict[str, Any] | None = None, **options: Any) -> list[str]:
    """What `tamis check` finds wrong."""
    write_rows(folder / "texts.jsonl", ROWS)
    given = {"data": "texts.jsonl", "model": str(model), "id": "id", "max_length": LENGTH, "query_share": 0.2}
    findings = check(load(write_toml(folder, "text_classification", given | options, scoring=scoring or {})))
    assert findings
    return [finding.text for finding in findings if not finding.ok]


@pytest.mark.parametrize("kind", [*ENTERED, *WHOLE])
def test_a_classifier_of_any_kind_passes_the_check(tmp_path: Path, kind: str) -> None:
    assert wrong_with(tmp_path, save_classifier(tmp_path / kind, kind), SETTINGS.get(kind)) == []


@pytest.mark.parametrize("kind", ["Bart", "GPT2", "T5"])
def test_the_part_of_a_model_that_reads_is_an_encoder_for_a_mean(tmp_path: Path, kind: str) -> None:
    assert wrong_with(tmp_path, save_classifier(tmp_path / kind, kind), head="mean") == []


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("Llama", "block 'score' does not produce the logits as they are.*: set scoring.exact_head = false"),
        ("DebertaV2", "'.*pos_key_proj' saw 1 rows; .* select blocks whose first dimension is the batch"),
    ],
)
def test_settings_that_a_kind_needs_are_said_in_one_line(tmp_path: Path, kind: str, said: str) -> None:
    [found] = wrong_with(tmp_path, save_classifier(tmp_path / kind, kind))
    assert re.search(said, found)
    assert "\n" not in found


def logits(workload: TextClassification) -> torch.Tensor:
    points = workload.points()
    batch = Batches(points, collate_of(workload)).take(torch.arange(len(points)))
    with torch.no_grad():
        return workload.logits(seeded_model(workload, 0).eval(), batch)


@pytest.mark.parametrize(
    ("kind", "head"), [*((kind, "model") for kind in ENTERED), *((kind, "mean") for kind in DECODERS)]
)
def test_the_last_layers_may_be_trained_alone(tmp_path: Path, kind: str, head: str) -> None:
    model = save_classifier(tmp_path / kind, kind)
    whole, upper = (logits(texts_of(tmp_path, model, ROWS, head=head, train_layers=n)) for n in (None, 1))
    assert (upper - whole).norm() <= 1e-5 * whole.norm()


@pytest.mark.parametrize("kind", WHOLE)
def test_a_model_that_cannot_be_entered_at_a_layer_is_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    own = {"head": "model" if kind in DECODERS else "mean"}
    [said] = wrong_with(tmp_path, save_classifier(tmp_path / kind, kind), train_layers=1, **own)
    assert said.startswith("train_layers: ")
    assert said.endswith("leave the option out to train all of it")
    assert "\n" not in said


def test_a_head_of_other_labels_is_refused_with_both_numbers(tmp_path: Path) -> None:
    model = save_classifier(tmp_path / "three", "Bert", labels=3)
    [said] = wrong_with(tmp_path, model)
    assert f"{model}: classifier.bias is [3] in its file, and should be [2]: name all labels of its head" in said
    assert wrong_with(tmp_path, model, head="mean") == []
    assert wrong_with(tmp_path, model, labels=["negative", "neutral", "positive"]) == []


def test_a_model_without_hidden_states_is_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deaf(*_: Any, **__: Any) -> None:
        raise ValueError("You have to specify pixel_values")

    workload = texts_of(tmp_path, save_classifier(tmp_path / "bert", "Bert"), ROWS)
    model: Any = workload.model()
    monkeypatch.setattr(model.encoder, "forward", deaf)
    with pytest.raises(BadInput, match=r"MeanClassifier gives no hidden states .*ValueError: .*pixel_values"):
        hidden_of(model, {"input_ids": torch.ones(1, 3).long(), "attention_mask": torch.ones(1, 3).long()})
