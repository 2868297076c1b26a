"""Language models of which the last layers are trained: the same as the whole model, and those below run once."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

from flows.asking import task_of
from flows.check import check
from flows.config import load
from flows.errors import BadInput
from flows.score_file import score_file
from flows.workload import Batches, collate_of, load_workload, seeded_model
from flows.workloads.causal_lm import CausalLM
from influence import EKFAC, Damping, Fisher, Influence, select
from influence.blocks import by_name
from storage import checkpoints
from tests.flows.helpers import write_toml
from tests.flows.test_causal_lm import GPT2, LLAMA, made
from tests.flows.test_ranks import STEPS, here, train_plan, weights
from tests.flows.texts import LENGTH, save_bert, sentences, write_rows

LAYERS = 3
ROWS = sentences(40)
KINDS: Mapping[str, Mapping[str, Any]] = {
    "llama": {**LLAMA, "num_hidden_layers": LAYERS},
    "tied llama": {**LLAMA, "num_hidden_layers": LAYERS, "tie_word_embeddings": True},
    "gpt2": {**GPT2, "n_layer": LAYERS},  # tied, with places in a table and dropout
}
LAST = {"llama": "model.layers.2.*", "tied llama": "model.layers.2.*", "gpt2": "transformer.h.2.*"}
SAME = 1e-5
SCORING = {"fisher": "empirical", "exact_head": False, "chunk": 16, "probe": 0}
NO_CLASSES: dict[str, Any] = {"scoring": SCORING, "pruning": {"policies": ["harmful"]}}
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def writers(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Models as save_pretrained writes them, with BERT's tokenizer."""
    folder = tmp_path_factory.mktemp("writers")
    bert = save_bert(folder / "bert")
    for kind, config in KINDS.items():
        new = made(folder, ROWS, config={**config, "initializer_range": 0.3}, tokenizer=str(bert))
        shutil.copytree(bert, folder / kind)
        seeded_model(new, 0).save_pretrained(folder / kind)
    return {kind: folder / kind for kind in KINDS}


def of_last(folder: Path, model: Path, layers: int | None, **options: Any) -> CausalLM:
    return made(folder, ROWS, model=str(model), config=None, id="id", train_layers=layers, **options)


def everyone(workload: CausalLM) -> dict[str, Tensor]:
    points = workload.points()
    return workload.collate([points[row] for row in range(len(points))])


def far(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def learned(model: nn.Module) -> set[str]:
    return {name for name, one in model.named_parameters() if one.requires_grad}


@every_kind
@pytest.mark.parametrize("layers", [0, 1, 3])
def test_the_loss_is_that_of_the_whole_model_and_what_is_below_is_not_trained(
    tmp_path: Path, writers: Mapping[str, Path], kind: str, layers: int
) -> None:
    whole, upper = (of_last(tmp_path, writers[kind], number) for number in (None, layers))
    models = [seeded_model(workload, 0).eval() for workload in (whole, upper)]
    batch = everyone(whole)
    with torch.no_grad():
        expected, found = (work.loss(model, batch) for work, model in zip((whole, upper), models))
    assert far(found, expected) < SAME
    whole_names, names = (learned(model) for model in models)
    assert {int(name.split(".")[2]) for name in names if ".layers." in name or ".h." in name} == set(
        range(LAYERS - layers, LAYERS)
    )
    assert ("lm_head.weight" in names) == (kind == "llama"), "a tied one stays with the table"
    assert names - {"lm_head.weight"} < whole_names
    assert not [name for name in names if "embed" in name or "wte" in name or "wpe" in name]


@every_kind
def test_influence_on_the_trained_blocks_is_that_of_the_whole_model(
    tmp_path: Path, writers: Mapping[str, Path], kind: str
) -> None:
    def scored(layers: int | None) -> list[Tensor]:
        workload = of_last(tmp_path, writers[kind], layers)
        model = seeded_model(workload, 0).eval()
        train, queries = (Batches(points, collate_of(workload)) for points in (workload.points(), workload.queries()))
        blocks = select(model, by_name(LAST[kind]))
        assert len(blocks) > 1
        rows, asked = torch.arange(len(workload.points())), torch.arange(len(workload.queries()))
        batches = [train.take(part) for part in rows.split(8)]
        with Influence(model, task_of(workload), EKFAC(blocks), blocks, fisher=Fisher("empirical")) as engine:
            engine.fit(batches, Damping("absolute", 1e-2))
            pairs = engine.pairs(batches, [queries.take(asked)])
        return [pairs.influence, pairs.self_influence]

    for found, expected in zip(scored(1), scored(None), strict=True):
        assert far(found, expected) < SAME


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of each layer of a Llama that runs."""
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    found: list[int] = []
    run = LlamaDecoderLayer.forward

    def counted(layer: Any, *given: Any, **named: Any) -> Any:
        found.append(layer.self_attn.layer_idx)
        return run(layer, *given, **named)

    monkeypatch.setattr(LlamaDecoderLayer, "forward", counted)
    return found


def test_the_frozen_layers_run_once_and_the_others_in_every_pass(
    tmp_path: Path, writers: Mapping[str, Path], ran: list[int]
) -> None:
    def passes(count: int, **options: Any) -> list[int]:
        workload = of_last(tmp_path, writers["llama"], 1, **options)
        model = seeded_model(workload, 0)
        ran.clear()  # by the question whether it sees the future
        for _ in range(count):
            workload.loss(model, everyone(workload)).sum().backward()
        [kept] = [path for path in workload.cached() if path.name.startswith("frozen-")]
        assert {path.name for path in kept.iterdir()} >= {"hidden.npy", "keys.npy"}
        return [ran.count(layer) for layer in range(LAYERS)]

    once = passes(1)
    assert once[0] == once[1] == 3, "the whole, what enters the first trained layer, and all of the texts"
    assert passes(4) == [0, 0, 4]
    assert passes(1, prompt="text", completion="label")[0] == 3, "other texts"


def test_in_training_what_is_kept_has_no_dropout(tmp_path: Path, writers: Mapping[str, Path]) -> None:
    workload = of_last(tmp_path, writers["gpt2"], 0)
    model = seeded_model(workload, 0)
    assert model.training
    assert model.config.embd_pdrop > 0
    assert workload.loss(model, everyone(workload)).equal(workload.loss(model, everyone(workload)))


@every_kind
def test_a_check_finds_everything_in_order(tmp_path: Path, writers: Mapping[str, Path], kind: str) -> None:
    findings = check(load(write_toml(tmp_path, "causal_lm", options(tmp_path, writers[kind]), **NO_CLASSES)))
    assert [finding.text for finding in findings if not finding.ok] == []
    [said] = [finding.text for finding in findings if finding.name == "blocks"]
    assert LAST[kind].removesuffix("*") in said


def options(folder: Path, model: Path, **more: Any) -> dict[str, Any]:
    """For a TOML in the folder."""
    write_rows(folder / "texts.jsonl", ROWS)
    given = {"data": "texts.jsonl", "model": str(model), "id": "id", "max_length": LENGTH, "query_share": 0.2}
    return given | {"train_layers": 1} | more


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("lora", [None, {"r": 2}])
def test_a_training_moves_the_upper_part_alone_and_its_checkpoint_is_scored(
    one_rank: None, tmp_path: Path, writers: Mapping[str, Path], kind: str, lora: dict[str, int] | None
) -> None:
    given = options(tmp_path, writers[kind], **({} if lora is None else {"lora": lora}))
    here("train", train_plan(tmp_path, "causal_lm", given, learning_rate=0.01))
    model = seeded_model(load_workload(load(tmp_path / "tamis.toml")), 3)  # as the job began
    found = weights(tmp_path)
    assert found.keys() == model.state_dict().keys()
    moved = {name for name, value in model.state_dict().items() if not np.array_equal(value.numpy(), found[name])}
    assert moved == learned(model)
    assert all(("lora_" in name) == bool(lora) for name in moved)
    numbers = {int(part) for name in moved for part in name.split(".") if part.isdigit()}
    assert numbers == {LAYERS - 1}
    file = write_toml(tmp_path, "causal_lm", given, **NO_CLASSES)
    tensors = tmp_path / "model" / f"step-{STEPS:06d}" / checkpoints.TENSORS
    table = pq.read_table(score_file(file, tensors, tmp_path / "scores.parquet").file)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in found.items()})
    workload: Any = load_workload(load(file))
    with torch.no_grad():
        expected = workload.loss(model.eval(), everyone(workload))
    assert table["point_id"].to_pylist() == workload.points().ids
    torch.testing.assert_close(torch.tensor(table["loss"].to_pylist()), expected, rtol=1e-5, atol=1e-6)
    assert np.abs(table["influence"]).max() > 0


BAD: Mapping[str, tuple[dict[str, Any], str]] = {
    "a norm of what comes in": (
        {"model_type": "bloom", "hidden_size": 8, "n_head": 2, "n_layer": LAYERS},
        "BloomForCausalLM computes something else when it is entered at layer 0",
    ),
    "dropout of what comes in": (
        {"model_type": "xglm", "d_model": 8, "ffn_dim": 8, "num_layers": LAYERS, "attention_heads": 2},
        "XGLMForCausalLM computes something else when it is entered at layer 0",
    ),
    "layers of another shape": (
        {**GPT2, "model_type": "gptj", "n_layer": LAYERS, "rotary_dim": 2},
        "GPTJForCausalLM cannot be entered at layer 2",
    ),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_model_that_cannot_be_entered_is_refused_in_one_line(
    tmp_path: Path, writers: Mapping[str, Path], fault: str
) -> None:
    config, said = BAD[fault]
    folder = shutil.copytree(writers["gpt2"], tmp_path / "other")
    seeded_model(made(tmp_path, ROWS, config=config, tokenizer=str(folder)), 0).save_pretrained(folder)
    workload = of_last(tmp_path, folder, int(said[-1] == "0") * 2 + 1)
    with pytest.raises(
        BadInput, match=rf"^train_layers: {said}.*; leave the option out to train all of it$"
    ) as refused:
        workload.loss(seeded_model(workload, 0), everyone(workload))
    assert "\n" not in str(refused.value)


def test_more_layers_than_there_are_and_those_of_a_new_model_are_refused(
    tmp_path: Path, writers: Mapping[str, Path]
) -> None:
    with pytest.raises(BadInput, match="train_layers = 4: LlamaModel has 3 layers"):
        of_last(tmp_path, writers["llama"], 4).model()
    with pytest.raises(BadInput, match=r"options\.train_layers: the weights of a new model would stay as they were"):
        made(tmp_path, ROWS, train_layers=1)
