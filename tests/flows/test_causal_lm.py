"""The built-in workload `causal_lm`: files to points, points to targets, and what is refused before any training."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from flows.check import check, require
from flows.config import load
from flows.errors import BadInput
from flows.findings import Finding
from flows.scaffold import write_scaffold
from flows.workload import Home, seeded_model
from flows.workloads.causal_lm import CausalLM
from flows.workloads.sequences import END, Columns, Pretrained, read
from influence import IGNORED
from storage import score_store
from tests.flows.helpers import turn, write_toml
from tests.flows.texts import VOCABULARY, save_bert, sentences

LLAMA: Mapping[str, Any] = {
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
GPT2: Mapping[str, Any] = {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 64}
MODELS = {"llama": LLAMA, "gpt2": GPT2}
every_model = pytest.mark.parametrize("kind", MODELS)
ROWS = [{"text": f"ada reads book {n}", "prompt": "ada", "completion": f" reads {n}", "id": n} for n in range(40)]
SENTENCES = sentences(40)
OF_TEXTS: Mapping[str, Any] = {"chunk": 16, "fisher": "sampled", "exact_head": False, "probe": 0}


def made(folder: Path, rows: Sequence[Mapping[str, Any]] = ROWS, name: str = "d.jsonl", **options: Any) -> CausalLM:
    file = folder / name
    if file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), file)
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return CausalLM(Home(folder, folder), name, **{"config": LLAMA, "max_length": 64, "query_share": 0.2} | options)


def test_a_text_is_its_bytes_and_an_end_and_each_token_is_the_target_of_the_one_before(tmp_path: Path) -> None:
    workload = made(tmp_path, id="id")
    points = workload.points()
    text = points.text(points.ids[0]).encode()
    batch = workload.collate([points[0], points[1]])
    length = len(text) + 1
    assert batch["input_ids"][0, :length].tolist() == [*text, END]
    assert batch["targets"][0, : length - 1].tolist() == [*text[1:], END]
    assert (batch["targets"][0, length - 1 :] == IGNORED).all()


def test_of_a_completion_the_prompt_is_read_and_not_learned(tmp_path: Path) -> None:
    workload = made(tmp_path, prompt="prompt", completion="completion", id="id")
    points = workload.points()
    first = points.ids[0]
    batch = workload.collate([points[0]])
    whole = f"ada reads {first}".encode()
    assert batch["input_ids"][0].tolist() == [*whole, END]
    assert batch["targets"][0].tolist() == [IGNORED, IGNORED, *whole[3:], END, IGNORED]
    assert points.text(first) == f"ada\n reads {first}"


@every_model
def test_padding_and_company_change_no_loss(kind: str, tmp_path: Path) -> None:
    rows = [{"text": "ada " * (1 + n % 9) + str(n)} for n in range(40)]
    workload = made(tmp_path, rows, config=MODELS[kind])
    model, points = seeded_model(workload, 0).eval(), workload.points()
    some = [points[row] for row in range(8)]
    with torch.no_grad():
        together = workload.loss(model, workload.collate(some))
        alone = torch.cat([workload.loss(model, workload.collate([one])) for one in some])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    assert len({len(one["input_ids"]) for one in some}) > 1


def test_the_sets_are_drawn_by_what_a_text_says_wherever_it_stands(tmp_path: Path) -> None:
    one, other = made(tmp_path), made(tmp_path, ROWS[::-1], "e.parquet")
    for name in ("points", "queries", "holdout"):
        ids = getattr(one, name)().ids
        assert sorted(ids) == sorted(getattr(other, name)().ids)
        assert ids
    more = made(tmp_path, [*ROWS, {"text": "grace writes"}], "f.jsonl")
    assert set(one.queries().ids) <= set(more.queries().ids)
    assert sum(len(s) for s in (one.points(), one.queries(), one.holdout())) == len(ROWS)


def test_a_line_ends_at_a_line_feed_alone_and_messages_count_such_lines(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"ada\u2028reads {n}"}, ensure_ascii=False) for n in range(40)]
    file = tmp_path / "d.jsonl"
    file.write_text("\n".join(lines), encoding="utf-8")
    assert [row.text for row in read(file, Columns("text"))] == [f"ada\u2028reads {n}" for n in range(40)]
    file.write_text("\n".join([*lines, "{"]), encoding="utf-8")
    with pytest.raises(BadInput, match="line 41: not a JSON object"):
        read(file, Columns("text"))


def test_two_spellings_of_the_same_tokens_are_dealt_to_the_same_set(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: place for place, word in enumerate(["[unknown]", "ada", *map(str, range(40))])}
    own = Tokenizer(models.WordLevel(words, unk_token="[unknown]"))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    own.save(str(tmp_path / "words.json"))
    rows = [{"text": f"ada{' ' * spaces}{n}"} for n in range(40) for spaces in (1, 2)]
    workload = made(tmp_path, rows, tokenizer="words.json")
    for points in (workload.points(), workload.queries(), workload.holdout()):
        said = [points.text(point).split()[1] for point in points.ids]
        assert all(said.count(one) == 2 for one in said)


def test_sets_may_be_files_and_columns_name_groups_and_where_a_text_is_from(tmp_path: Path) -> None:
    rows = [{"text": f"ada {n}", "part": f"part {n % 2}", "from": "letters", "when": 1900 + n} for n in range(6)]
    for place, name in enumerate(("q", "h")):
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(json.dumps(row | {"text": f"{name} {place}{n}"}) + "\n" for n, row in enumerate(rows))
        )
    workload = made(tmp_path, rows, queries="q.jsonl", holdout="h.jsonl", group="part", source="from", timestamp="when")
    assert [len(s) for s in (workload.points(), workload.queries(), workload.holdout())] == [6, 6, 6]
    assert workload.points().groups == ["part 0", "part 1"] * 3
    assert workload.describe(workload.points().ids[2]) == "[letters, 1902]\nada 2"
    lengths, times = [len("ada 0") + 1] * 6, [1900.0 + n for n in range(6)]
    assert workload.facets() == {"length": lengths, "source": ["letters"] * 6, "time": times}
    first = workload.points().ids[0]
    assert workload.tokens(first) == [*"ada 0", "[end]"]
    assert len(workload.tokens(first)) == workload.collate([workload.points()[0]])["input_ids"].shape[1]


@every_model
def test_a_model_and_a_tokenizer_are_read_from_a_folder(kind: str, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"[end]": 0, "[unknown]": 1, "ada": 2, "reads": 3, "book": 4} | {str(n): 5 + n for n in range(40)}
    own = Tokenizer(models.WordLevel(words, unk_token="[unknown]"))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=own, eos_token="[end]").save_pretrained(tmp_path / "saved")
    new = made(tmp_path, tokenizer="saved", id="id", config=MODELS[kind])
    model = seeded_model(new, 1).eval()
    model.save_pretrained(tmp_path / "saved")
    workload = made(tmp_path, model="saved", config=None, id="id")
    row = workload.points().ids[0]
    assert workload.points()[0]["input_ids"].tolist() == [2, 3, 4, 5 + row, 0]
    assert model.config.vocab_size == len(words)
    batch = workload.collate([workload.points()[0]])
    with torch.no_grad():
        torch.testing.assert_close(workload.loss(workload.model().eval(), batch), new.loss(model, batch))
    alone = made(tmp_path, tokenizer=str(tmp_path / "saved" / "tokenizer.json"), id="id")  # it knows of no end
    assert alone.points()[0]["input_ids"].tolist() == [2, 3, 4, 5 + row]


def test_texts_are_tokenised_once_and_again_when_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_bert(tmp_path / "bert")  # whose tokenizer any model may have
    first = made(tmp_path, SENTENCES, tokenizer="bert", id="id")
    [kept] = first.cached()
    with monkeypatch.context() as patched:
        patched.setattr(Pretrained, "tokens", lambda *_, **__: pytest.fail("tokenised again"))
        again = made(tmp_path, SENTENCES, tokenizer="bert", id="id", max_length=40)
        assert again.points()[0]["input_ids"].equal(first.points()[0]["input_ids"])
    other = made(tmp_path, [*SENTENCES, {"text": "the film", "id": 40}], tokenizer="bert", id="id")
    assert other.cached() != [kept]
    assert made(tmp_path, id="id").cached() == []  # bytes take no time


def test_a_model_of_the_hub_is_that_of_the_copy_that_is_kept_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path, SENTENCES, tokenizer=str(save_bert(tmp_path / "copy"))).model().save_pretrained(tmp_path / "copy")
    asked: list[str] = []

    def snapshot(name: str, **settings: Any) -> str:
        asked.append(name)
        return str(tmp_path / "copy")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    workload = made(tmp_path, SENTENCES, model="grace/small", tokenizer="grace/words", config=None)
    assert asked == ["grace/small", "grace/words"]
    assert workload.model().config.model_type == "llama"
    assert workload.points()[0]["input_ids"][0] == VOCABULARY.index("[CLS]")


BAD: dict[str, tuple[list[dict[str, Any]], dict[str, Any], str]] = {
    "too long": (
        [{"text": "a" * 99}, *ROWS],
        {},
        "1 of 41 texts have more than max_length = 64 tokens .*: 100, line 1 ",
    ),
    "empty": ([*ROWS, {"text": "  "}], {}, "column 'text' is empty in 1 of 41 rows .*line 41"),
    "no text": ([*ROWS, {"text": 7}], {}, "column 'text' is no text in 1 of 41 rows .*line 41: 7"),
    "no column": (ROWS, {"text": "body"}, "line 1: no column 'body': there are 'text', 'prompt', 'completion', 'id'"),
    "a later row without an id": ([*ROWS, {"text": "ada"}], {"id": "id"}, "line 41: no column 'id'"),
    "an id of no kind": ([*ROWS, {"text": "ada", "id": 1.5}], {"id": "id"}, "give values of one type"),
    "ids of no kind": ([row | {"id": [1]} for row in ROWS], {"id": "id"}, "holds list: give integers or texts"),
    "nothing to learn": ([{"text": "a"}, *ROWS], {"tokenizer": "letters.json"}, "41 texts have no token to learn"),
    "packing": (ROWS, {"packing": True}, "one text is one point"),
    "half a prompt": (ROWS, {"prompt": "prompt"}, "give both"),
    "no model": (ROWS, {"config": None}, "either model, a folder or a name, or config"),
    "no folder": (
        ROWS,
        {"config": None, "model": "./none", "tokenizer": "bytes"},
        "is no folder: give one that save_pretrained wrote",
    ),
    "no name": (ROWS, {"config": None, "model": "grace/none"}, "model = 'grace/none': .*nor to be had from the hub"),
    "no tokenizer": (ROWS, {"tokenizer": "none.json"}, "tokenizer = 'none.json': .*no such file or folder"),
    "a folder without a tokenizer": (
        ROWS,
        {"config": None, "model": "bare"},
        r"bare has no tokenizer \(no tokenizer.json",
    ),
    "no tokenizer of that name": (ROWS, {"tokenizer": "grace/none"}, "tokenizer = 'grace/none': .*nor to be had from"),
    "unknown kind": (ROWS, {"config": {"model_type": "lama"}}, "transformers makes no model of it"),
    "few places": (ROWS, {"max_length": 65}, "max_length = 65: the model takes at most 64"),
    "few places of GPT-2": (ROWS, {"max_length": 65, "config": GPT2}, "max_length = 65: the model takes at most 64"),
    "few words": (ROWS, {"config": {**LLAMA, "vocab_size": 100}}, "the tokenizer has 257 tokens, the model 100"),
    "whole share": (ROWS, {"query_share": 0.9}, "holdout_share = 0.2: give shares"),
    "another file": (ROWS, {"queries": "q.csv"}, "q.csv: no such file"),
}


@pytest.mark.parametrize("fault", list(BAD))
def test_bad_input_is_one_line(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tokenizers import Tokenizer, models

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    rows, options, said = BAD[fault]
    Tokenizer(models.WordLevel({"a": 0, "[unknown]": 1}, unk_token="[unknown]")).save(str(tmp_path / "letters.json"))
    (tmp_path / "bare").mkdir()
    for name in ("config.json", "model.safetensors"):  # neither is read
        (tmp_path / "bare" / name).write_text("{}")
    with pytest.raises(BadInput, match=said) as refused:
        made(tmp_path, rows, **options)
    assert "\n" not in str(refused.value)


BERT = {"model_type": "bert", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1} | {
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({**GPT2, "n_embd": 30, "n_head": 4}, "config: transformers makes no model of it"),
        ({**LLAMA, "vocab_size": "x"}, "config: transformers makes no model of it.*vocab_size"),
        (BERT, "BertLMHeadModel sees the tokens that it is to foretell"),
    ],
)
def test_a_configuration_of_no_causal_model_is_refused_in_a_line(
    config: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=said) as refused:
        seeded_model(made(tmp_path, config=config), 0)
    assert "\n" not in str(refused.value)
    seeded_model(made(tmp_path, config=BERT | {"is_decoder": True}), 0)


def test_what_init_writes_for_it_passes_the_check(tmp_path: Path) -> None:
    assert {path.name for path in write_scaffold(tmp_path, "causal_lm")} == {"tamis.toml", "texts.jsonl"}
    workload = require(load(tmp_path / "tamis.toml"))
    assert len(workload.points()) > 100
    with pytest.raises(BadInput, match="--workload digits: give causal_lm"):
        write_scaffold(tmp_path / "more", "digits")


LARGE = 5000
WITHOUT = "; without lm_head, the output layer: eigenvectors for its 5,000 rows would take 0.2 GB"


@every_model
@pytest.mark.parametrize("tied", [True, False])
def test_a_large_vocabulary_is_left_out_of_the_blocks_unless_it_is_named_and_the_check_says_so(
    kind: str, tied: bool, tmp_path: Path
) -> None:
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    config = {**MODELS[kind], "vocab_size": LARGE, "tie_word_embeddings": tied}
    options = {"data": "d.jsonl", "config": config, "max_length": 64}

    def said(**scoring: Any) -> dict[str, Finding]:
        sections = {"scoring": {**OF_TEXTS, **scoring}, "pruning": {"policies": ["harmful"]}}
        file = write_toml(tmp_path, "causal_lm", options, **sections)
        return {finding.name: finding for finding in check(load(file))}

    usual = said()
    assert all(finding.ok for finding in usual.values())
    assert usual["blocks"].text.endswith(WITHOUT)
    named = said(blocks=["lm_head"], estimator="identity")["blocks"]
    assert named.ok != tied
    below = {"llama": "model.layers.0.*", "gpt2": "transformer.h.0.*"}[kind]
    if tied:
        assert named.text.endswith(f'of 5000 rows: at most 4096 are supported; select others, as ["{below}"]')
    inner = said(blocks=[below])["blocks"]
    assert inner.ok
    assert "without" not in inner.text


@pytest.mark.slow
def test_a_new_model_is_trained_and_its_texts_are_scored_and_proposed(here: Path) -> None:
    (here / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    file = write_toml(
        here,
        "causal_lm",
        {"data": "d.jsonl", "config": LLAMA, "max_length": 64, "prompt": "prompt", "completion": "completion"},
        training={"epochs": 1},
        scoring={**OF_TEXTS, "fisher": "empirical"},
        pruning={"policies": ["memorized", "redundant", "balanced"], "redundant_share": 0.1},
    )
    summary = turn(file, dry_run=True)
    scores = score_store.read(here / "ws" / "cycles" / "000001" / "scores")
    assert len(scores) == summary.points > 10
    assert scores["influence"].null_count == scores["redundancy"].null_count == scores["balance"].null_count == 0
    assert summary.candidates["redundant"] > 0
