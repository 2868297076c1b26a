"""LoRA without code: adapters and the head are all that is trained and asked, and peft can read what comes out."""

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from flows.check import check
from flows.config import load
from flows.errors import BadInput
from flows.estimators import selections
from flows.score_file import score_file
from flows.sections.scoring import BlocksConfig
from flows.stores import tracker_of
from flows.workload import Home, load_workload, seeded_model
from flows.workloads.causal_lm import CausalLM
from flows.workloads.text.encoder import MeanClassifier, logits_of
from influence import select
from storage import checkpoints
from tests.flows.helpers import launch, turn, write_toml
from tests.flows.test_causal_lm import LLAMA
from tests.flows.test_ranks import STEPS, train_plan, weights
from tests.flows.test_ranks import here as run
from tests.flows.test_training_resume import RECIPE, killed_here, left, one_whole_one_killed, plan, vector
from tests.flows.test_training_resume import here as trained_here
from tests.flows.texts import LENGTH, save_bert, sentences, texts_of, write_rows

ROWS = sentences(60)
GPT2 = {"model_type": "gpt2", "n_embd": 8, "n_head": 2, "n_layer": 1, "n_positions": 64}
ADAPTERS, HEAD = ("*.lora_A.*", "*.lora_B.*"), "*.modules_to_save.*"
CLASSES, WORDS = "text_classification", "causal_lm"
NO_CLASSES = {"fisher": "empirical", "exact_head": False, "chunk": 16}
README = Path(__file__).parents[2] / "README.md"
DAMPED = {"damping": {"kind": "absolute", "value": 0.01}, "probe": 0}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(scope="module")
def writers(tmp_path_factory: pytest.TempPathFactory, bert: Path) -> Mapping[str, Path]:
    """Language models as save_pretrained writes them, with BERT's tokenizer, by their type."""
    folder, found = tmp_path_factory.mktemp("writers"), {}
    write_rows(folder / "texts.jsonl", ROWS)
    for config in (LLAMA, GPT2):
        new = CausalLM(Home(folder, folder), "texts.jsonl", config=config, tokenizer=str(bert), max_length=64)
        found[config["model_type"]] = shutil.copytree(bert, folder / config["model_type"])
        seeded_model(new, 0).save_pretrained(found[config["model_type"]])
    return found


def options(folder: Path, model: Path, **more: Any) -> dict[str, Any]:
    """Of either workload, for a TOML in the folder."""
    folder.mkdir(exist_ok=True)
    write_rows(folder / "texts.jsonl", ROWS)
    given = {"data": "texts.jsonl", "model": str(model), "id": "id", "max_length": LENGTH, "query_share": 0.2}
    return given | {"lora": {"r": 2, "lora_alpha": 4}} | more


def learned(model: nn.Module) -> set[str]:
    return {name for name, one in model.named_parameters() if one.requires_grad}


def asked(model: nn.Module, **blocks: Any) -> list[str]:
    """Names of the blocks that are scored."""
    return [one.name for one in select(model, *selections(BlocksConfig(**blocks), {}))]


@pytest.mark.parametrize("head", ["mean", "model"])
@pytest.mark.parametrize("layers", [None, 2])
def test_adapters_of_the_trained_layers_and_the_head_are_trained_and_asked(
    tmp_path: Path, bert: Path, head: str, layers: int | None
) -> None:
    how = {"head": head, "train_layers": layers}
    adapted, plain = (texts_of(tmp_path, bert, ROWS, **how, lora=lora) for lora in ({"r": 2}, None))
    model = seeded_model(adapted, 0)
    inside = {name.partition(".layer.")[2] for name in learned(model)} - {""}
    parts = [f"self.{part}.lora_{side}.default.weight" for part in ("query", "value") for side in "AB"]
    assert inside == {f"{number}.attention.{part}" for number in range(3)[-(layers or 3) :] for part in parts}
    assert {name.partition(".modules_to_save.")[2] for name in learned(model)} == {"", "default.weight", "default.bias"}
    assert {f"{name}.weight" for name in asked(model)} == {name for name in learned(model) if "bias" not in name}
    batch = adapted.collate([adapted.points()[row] for row in range(8)])
    with torch.no_grad():
        found = adapted.logits(model.eval(), batch)
        before = plain.logits(seeded_model(plain, 0).eval(), batch)
    torch.testing.assert_close(found, before)  # untrained adapters add nothing


@pytest.mark.parametrize(("kind", "layers"), [("llama", {"q_proj", "v_proj"}), ("gpt2", {"c_attn"})])
def test_of_a_language_model_adapters_alone_are_trained_and_asked(
    tmp_path: Path, writers: Mapping[str, Path], kind: str, layers: set[str], recwarn: pytest.WarningsRecorder
) -> None:
    workload = load_workload(load(write_toml(tmp_path, WORDS, options(tmp_path, writers[kind]))))
    model = seeded_model(workload, 0)
    names = [name.split(".") for name in learned(model)]
    assert {(name[-4], name[-3]) for name in names} == {(layer, f"lora_{side}") for layer in layers for side in "AB"}
    assert {f"{name}.weight" for name in asked(model)} == learned(model)
    assert all(module.training for module in model.modules())
    assert not [one for one in recwarn if "peft" in one.filename]


@pytest.mark.parametrize("entry", [CLASSES, WORDS])
def test_a_check_finds_everything_in_order(tmp_path: Path, bert: Path, writers: Mapping[str, Path], entry: str) -> None:
    how: dict[str, Any] = {"scoring": NO_CLASSES, "pruning": {"policies": ["harmful"]}} if entry == WORDS else {}
    model = writers["gpt2"] if entry == WORDS else bert
    findings = check(load(write_toml(tmp_path, entry, options(tmp_path, model), **how)))
    assert [finding.text for finding in findings if not finding.ok] == []
    [said] = [finding.text for finding in findings if finding.name == "blocks"]
    assert "lora_A" in said


@pytest.fixture(scope="module")
def trained(one_rank: None, tmp_path_factory: pytest.TempPathFactory, bert: Path) -> Path:
    """The last layers' adapters and the model's own head, by DeepSpeed."""
    folder = tmp_path_factory.mktemp("trained")
    given = options(folder, bert, head="model", train_layers=2)
    run("train", train_plan(folder, CLASSES, given, learning_rate=0.01))
    return folder


def test_a_training_moves_adapters_and_head_and_nothing_else(trained: Path) -> None:
    model = seeded_model(load_workload(load(trained / "tamis.toml")), 3)  # as the job began
    found = weights(trained)
    assert found.keys() == model.state_dict().keys()
    moved = {name for name, value in model.state_dict().items() if not np.array_equal(value.numpy(), found[name])}
    assert moved == learned(model)


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_every_zero_stage_moves_them_alike(
    one_rank: None, tmp_path: Path, bert: Path, trained: Path, stage: int
) -> None:
    given = options(tmp_path, bert, head="model", train_layers=2)
    run("train", train_plan(tmp_path, CLASSES, given, learning_rate=0.01, zero_stage=stage))
    expected = weights(trained)
    for name, value in weights(tmp_path).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-3, atol=1e-4, err_msg=name)


def test_scores_of_a_file_are_those_of_its_adapters_and_head_by_name(tmp_path: Path, trained: Path, bert: Path) -> None:
    given, tables = options(tmp_path, bert, head="model", train_layers=2), []
    for blocks in ({}, {"blocks": [*ADAPTERS, HEAD]}):
        file = write_toml(tmp_path, CLASSES, given, scoring=DAMPED | blocks)
        done = score_file(file, trained / "model" / f"step-{STEPS:06d}" / checkpoints.TENSORS, tmp_path / "s.parquet")
        tables.append(pq.read_table(done.file))
    assert tables[0].equals(tables[1])
    assert np.abs(tables[0]["influence"]).max() > 0


@pytest.mark.parametrize("head", ["mean", "model"])
def test_peft_reads_what_was_trained_by_the_lines_of_the_readme(
    tmp_path: Path, bert: Path, head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import PeftModel
    from transformers import AutoModel
    from transformers import AutoModelForSequenceClassification as Classifier

    given = options(tmp_path, bert, head=head, train_layers=2)
    workload: Any = load_workload(load(write_toml(tmp_path, CLASSES, given)))
    trained = seeded_model(workload, 1)
    for name in learned(trained):
        nn.init.normal_(trained.get_parameter(name), std=0.1)
    save_file(trained.state_dict(), tmp_path / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(README.read_text().split("**LoRA.**")[1].split("```python\n")[1].split("```")[0], names)
    model = names["model"]
    batch = workload.collate([workload.points()[row] for row in range(8)])
    base = MeanClassifier(AutoModel.from_pretrained(bert), 2) if head == "mean" else Classifier.from_pretrained(bert)
    whole = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        expected = workload.logits(model.eval(), batch)
        for one in (whole, whole.merge_and_unload()):
            found = logits_of(one, input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no rank": ({"r": 0}, r"lora\.r = 0: Input should be greater than or equal to 1"),
    "another word": (
        {"alpha": 16},
        r"lora\.alpha: unknown key \(allowed: r, lora_alpha, lora_dropout, target_modules\)",
    ),
    "no list": ({"target_modules": "query"}, r"lora\.target_modules = 'query': Input should be a valid list"),
    "no such layer": (
        {"target_modules": ["query", "quary"]},
        "target_modules: 'quary' names no linear layer below the head; there are query, key, value, dense$",
    ),
    "the head": ({"target_modules": ["classifier"]}, "'classifier' names no linear layer below the head"),
    "a table": ({"target_modules": ["word_embeddings"]}, "'word_embeddings' names no linear layer below the head"),
}


@pytest.mark.parametrize("fault", list(BAD))
def test_bad_input_is_one_line(tmp_path: Path, bert: Path, fault: str) -> None:
    lora, said = BAD[fault]
    with pytest.raises(BadInput, match=said) as refused:
        texts_of(tmp_path, bert, ROWS, head="model", lora=lora).model()
    assert "\n" not in str(refused.value)


def test_without_a_layer_to_adapt_or_weights_to_keep_it_is_refused(tmp_path: Path, bert: Path) -> None:
    with pytest.raises(BadInput, match=r"'query' names no linear layer below the head; there is none$"):
        texts_of(tmp_path, bert, ROWS, train_layers=0, lora={}).model()
    write_rows(tmp_path / "texts.jsonl", ROWS)
    with pytest.raises(BadInput, match="the weights of a new model would stay as they were drawn: give a model"):
        CausalLM(Home(tmp_path, tmp_path), "texts.jsonl", config=LLAMA, lora={})


def test_a_kind_of_model_that_peft_does_not_know_is_asked_for_its_targets(
    tmp_path: Path, bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

    monkeypatch.delitem(KNOWN, "bert")
    with pytest.raises(BadInput, match="not say which layers of a bert to adapt: give target_modules; there are query"):
        texts_of(tmp_path, bert, ROWS, lora={}).model()
    assert learned(texts_of(tmp_path, bert, ROWS, lora={"target_modules": ["key"]}).model())


def test_without_peft_it_is_refused_before_anything_is_read(
    tmp_path: Path, bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(BadInput, match=r"this workload needs peft: pip install 'tamis\[hf\]'"):
        texts_of(tmp_path, bert, ROWS, lora={})
    assert not (tmp_path / "cache").exists()


def test_a_folder_with_an_adapter_alone_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "ada/base"}))
    with pytest.raises(BadInput, match=r"holds an adapter .* give its base \(ada/base\) and the option lora"):
        texts_of(tmp_path, tmp_path / "adapter", ROWS)


def test_a_training_that_was_killed_goes_on_to_the_same_bytes(
    one_rank: None, tmp_path: Path, bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = RECIPE | {"entry": CLASSES, "options": options(tmp_path, bert, train_layers=2), "batch_size": 16}
    killed_here(plan(tmp_path, "killed", **recipe), monkeypatch)
    trained_here(plan(tmp_path, "killed", "whole", **recipe))
    assert left(tmp_path / "killed") == left(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, pytest.param(3, marks=pytest.mark.matrix)])
def test_a_training_begun_on_two_ranks_ends_on_one(
    tmp_path: Path, bert: Path, monkeypatch: pytest.MonkeyPatch, stage: int
) -> None:
    same = shutil.copytree(bert, tmp_path / "bert") / "config.json"  # on any ranks: without dropout
    same.write_text(same.read_text().replace('_prob": 0.1', '_prob": 0.0'))
    recipe: dict[str, Any] = RECIPE | {"entry": CLASSES, "options": options(tmp_path, same.parent, train_layers=2)}
    recipe |= {"accumulation": 1, "batch_size": 16, "zero_stage": stage}
    one_whole_one_killed(tmp_path, monkeypatch, **recipe)
    launch("train", plan(tmp_path, "killed", ranks=1, **recipe), 1)
    moved, whole = (
        vector(checkpoints.read_tensors(checkpoints.latest(tmp_path / name).path)) for name in ("killed", "whole")
    )
    assert np.linalg.norm(moved - whole) <= 1e-5 * np.linalg.norm(whole)


@pytest.mark.slow
def test_a_dry_run_on_two_ranks_asks_the_adapters_and_shows_where_in_the_texts_the_influence_lies(
    tmp_path: Path, bert: Path
) -> None:
    file = write_toml(
        tmp_path,
        CLASSES,
        options(tmp_path, bert, head="mean", train_layers=2),
        training={"ranks": 2, "epochs": 10, "learning_rate": 0.01},
        scoring={"ranks": 2, "probe": 10},
        pruning={"policies": ["redundant"], "redundant_share": 0.1},
    )
    summary = turn(file, dry_run=True)
    assert summary.proposed
    assert "lora_A" in str(summary.blocks)
    html = summary.report.read_text()
    data = json.loads(html.split('type="application/json">')[1].split("</script>")[0])
    [influence] = [one["values"] for one in data["columns"] if one["name"] == "influence"]
    workload: Any = load_workload(load(file))
    texts = {workload.describe(point): workload.tokens(point) for point in workload.points().ids}
    for detail, total in zip(data["details"], influence, strict=True):
        assert [word for word, _ in detail["tokens"]] == texts[detail["text"]]
        assert any(value for _, value in detail["tokens"]), "adapters see single tokens"
        assert sum(value for _, value in detail["tokens"]) + detail["rest"] == pytest.approx(total, rel=0.01)


@pytest.mark.slow
def test_the_champion_of_a_language_model_with_adapters_is_a_whole_model_on_the_same_weights(
    here: Path, writers: Mapping[str, Path]
) -> None:
    file = write_toml(
        here,
        WORDS,
        options(here, writers["gpt2"]),
        training={"epochs": 4, "learning_rate": 0.01, "checkpoints": [1.0]},
        scoring=NO_CLASSES | {"probe": 10},
        pruning={"policies": ["redundant"], "redundant_share": 0.1},
        guardrail={"seeds": 2},
    )
    assert turn(file).state in ("promoted", "rolled_back")
    tracker = tracker_of(load(file))
    champion = tracker.champion(WORDS)
    assert champion is not None
    model = seeded_model(load_workload(load(file)), 0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(load_file(tracker.weights(champion) / checkpoints.TENSORS))
    assert {name for name, value in model.state_dict().items() if not value.equal(before[name])} == learned(model)
    assert turn(file, dry_run=True).cycle == 2
