"""Sets of texts are drawn so that they stay, made once, and refused in one line before anything runs."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from flows.config import load
from flows.dataset import read_sets
from flows.errors import BadInput
from flows.workload import Batches, collate_of, load_workload
from flows.workloads.text import prepared as prepared_module
from flows.workloads.text.classification import TextClassification
from flows.workloads.text.library import load_model
from flows.workloads.text.places import file_of, model_folder
from tests.flows.encoders import save_classifier
from tests.flows.helpers import write_toml
from tests.flows.texts import LENGTH, POSITIONS, save_bert, sentences, texts_of, write_rows

ROWS = sentences(80)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("models") / "bert")


def ids_of(workload: TextClassification) -> list[set[Any]]:
    return [set(points.ids) for points in (workload.points(), workload.queries(), workload.holdout())]


def test_appended_rows_leave_every_other_row_in_its_set(tmp_path: Path, bert: Path) -> None:
    before = ids_of(texts_of(tmp_path, bert, ROWS[:60]))
    after = ids_of(texts_of(tmp_path, bert, ROWS))
    assert all(len(ids) > 3 for ids in before)
    assert [ids & set(range(60)) for ids in after] == before


def test_texts_that_the_tokenizer_cannot_tell_apart_are_in_one_set(tmp_path: Path, bert: Path) -> None:
    twice = [*ROWS, *({**row, "id": 1000 + row["id"], "text": row["text"].upper()} for row in ROWS)]
    workload = texts_of(tmp_path, bert, twice)
    read_sets(workload)  # refuses sets that share a point
    assert sum(map(len, ids_of(workload))) == 160


def test_ids_come_from_the_text_where_there_is_no_column(tmp_path: Path, bert: Path) -> None:
    ids = [set(points) for points in ids_of(texts_of(tmp_path, bert, ROWS, id=""))]
    corrected = [{**row, "label": "positive"} if row["id"] < 40 else row for row in ROWS]
    assert [set(points) for points in ids_of(texts_of(tmp_path, bert, corrected, id=""))] == ids
    assert sum(map(len, ids)) == 80


def test_query_and_holdout_set_may_be_files_of_their_own(tmp_path: Path, bert: Path) -> None:
    write_rows(tmp_path / "queries.parquet", ROWS[:10])
    write_rows(tmp_path / "holdout.jsonl", ROWS[10:30])
    workload = texts_of(tmp_path, bert, ROWS[30:], queries="queries.parquet", holdout="holdout.jsonl")
    assert ids_of(workload) == [set(range(30, 80)), set(range(10)), set(range(10, 30))]


def test_columns_of_groups_sources_and_truth_are_given_on(tmp_path: Path, bert: Path) -> None:
    more = {"lang": "en", "site": "here", "day": "2026-01-02", "sure": "positive"}
    named = {"group": "lang", "source": "site", "timestamp": "day", "truth": "sure"}
    workload = texts_of(tmp_path, bert, [{**row, **more} for row in ROWS], **named)
    points = workload.points()
    assert set(points.groups or ()) == {"en"}
    assert workload.describe(points.ids[0]) == f"[here, 2026-01-02] {ROWS[int(points.ids[0])]['text']}"
    assert workload.truth() == dict.fromkeys(points.ids, 1)
    assert not hasattr(texts_of(tmp_path, bert, ROWS), "truth")


def test_planted_flips_have_a_truth(tmp_path: Path, bert: Path) -> None:
    clean, flipped = (texts_of(tmp_path, bert, ROWS, flips=share) for share in (0.0, 0.25))
    points = flipped.points()
    assert flipped.truth() == dict(zip(clean.points().ids, clean.points().labels))
    assert sum(flipped.truth()[id_] != label for id_, label in zip(points.ids, points.labels)) == round(len(points) / 4)
    assert flipped.queries().labels == clean.queries().labels


def test_a_batch_made_at_once_is_the_collation_of_its_samples(tmp_path: Path, bert: Path) -> None:
    workload = texts_of(tmp_path, bert, ROWS)
    batch = Batches(workload.points(), collate_of(workload)).take(torch.tensor([3, 0]))  # refuses another one
    assert batch["input_ids"].shape[1] == int(batch["attention_mask"].sum(1).max()), "as wide as the longest"


def test_a_data_set_is_tokenised_once_and_again_when_it_changes(
    tmp_path: Path, bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def counted(*given: Any) -> Any:
        made.append(1)
        return tokenized(*given)

    tokenized = prepared_module.tokenized
    monkeypatch.setattr(prepared_module, "tokenized", counted)
    first = texts_of(tmp_path, bert, ROWS)
    assert ids_of(texts_of(tmp_path, bert, ROWS)) == ids_of(first)
    assert len(made) == 1
    texts_of(tmp_path, bert, ROWS[:-1])
    texts_of(tmp_path, bert, ROWS, max_length=LENGTH - 1)
    texts_of(tmp_path, bert, ROWS, label="text", labels=[row["text"] for row in ROWS])
    assert len(made) == 4


def test_a_process_that_finds_its_tokens_does_not_import_transformers(tmp_path: Path, bert: Path) -> None:
    texts_of(tmp_path, bert, ROWS)
    program = (
        "import sys; from pathlib import Path; from tests.flows.texts import *\n"
        f"folder = Path({str(tmp_path)!r}); given = dict(id='id', max_length={LENGTH}, head='mean')\n"
        f"work = TextClassification(Home(folder, folder / 'cache'), 'texts.parquet', {str(bert)!r}, **given)\n"
        "assert len(work.points()) and len(work.queries()) and work.describe(work.points().ids[0])\n"
        "assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_a_text_over_the_limit_is_refused_with_the_count_or_cut_when_asked(tmp_path: Path, bert: Path) -> None:
    with pytest.raises(BadInput, match=r"\d+ of 80 texts have more than max_length = 5 tokens \(the longest: 14, row"):
        texts_of(tmp_path, bert, ROWS, max_length=5)
    points = texts_of(tmp_path, bert, ROWS, max_length=5, too_long="truncate").points()
    assert max(len(points[row]["input_ids"]) for row in range(len(points))) == 5
    with pytest.raises(BadInput, match=rf"max_length = 99: the model of .* takes at most {POSITIONS} tokens"):
        texts_of(tmp_path, bert, ROWS, max_length=99)


@pytest.mark.parametrize(("kind", "takes"), [("GPT2", 24), ("DistilBert", 24), ("Roberta", 23), ("MPNet", 22)])
def test_a_text_may_be_as_long_as_the_model_has_places_for_and_no_longer(tmp_path: Path, kind: str, takes: int) -> None:
    model = save_classifier(tmp_path / kind, kind, positions=24)
    whole = load_model("AutoModelForSequenceClassification", model)
    whole(input_ids=torch.full((1, takes), 7))
    with pytest.raises((IndexError, RuntimeError)):
        whole(input_ids=torch.full((1, takes + 1), 7))
    texts_of(tmp_path, model, ROWS, max_length=takes)
    with pytest.raises(BadInput, match=rf"max_length = {takes + 1}: .*{kind} takes at most {takes} tokens$"):
        texts_of(tmp_path, model, ROWS, max_length=takes + 1)


def test_what_was_tokenised_for_a_model_does_not_let_a_shorter_one_past_the_check(tmp_path: Path) -> None:
    long, short = (save_classifier(tmp_path / kind, kind, places) for kind, places in [("GPT2", 24), ("Bert", 12)])
    first = texts_of(tmp_path, long, ROWS)
    with pytest.raises(BadInput, match=r"max_length = 16: the model of .*Bert takes at most 12 tokens"):
        texts_of(tmp_path, short, ROWS)
    other = texts_of(tmp_path, save_classifier(tmp_path / "Roberta", "Roberta"), ROWS)
    assert ids_of(other) == ids_of(first), "the sets are those of the tokens"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ('{"model_type": "bert", "hidden_size": "x"}', "config.json cannot be read: .*hidden_size"),
        ('{"model_type": "bert", "num_attention_heads": 5}', "config.json is of no model: .*hidden size"),
        ("{", "config.json cannot be read: "),
    ],
)
def test_a_damaged_configuration_is_refused_in_one_line(tmp_path: Path, bert: Path, config: str, said: str) -> None:
    model = shutil.copytree(bert, tmp_path / "bert")
    (model / "config.json").write_text(config)
    with pytest.raises(BadInput, match=said) as refused:
        texts_of(tmp_path, model, ROWS)
    assert "\n" not in str(refused.value)


def test_ids_of_two_types_in_two_files_are_refused(tmp_path: Path, bert: Path) -> None:
    write_rows(tmp_path / "queries.jsonl", [{**row, "id": f"q{row['id']}"} for row in ROWS[:10]])
    with pytest.raises(
        BadInput, match=r"ids are of different types \(.*texts\.parquet: int64, .*queries\.jsonl: string"
    ):
        texts_of(tmp_path, bert, ROWS[10:], queries="queries.jsonl")


def test_shares_that_leave_a_set_empty_are_refused(tmp_path: Path, bert: Path) -> None:
    with pytest.raises(BadInput, match=r"the query set is empty \(\d+ train, 0 query, \d+ holdout"):
        texts_of(tmp_path, bert, ROWS, query_share=0.0)
    with pytest.raises(ValueError, match=r"give shares that leave some"):
        texts_of(tmp_path, bert, ROWS, query_share=0.5, holdout_share=0.5)


def test_a_folder_that_is_no_whole_model_is_refused(
    tmp_path: Path, bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def without(*names: str) -> str:
        folder = tmp_path / "-".join(("without", *names))
        folder.mkdir()
        for file in bert.iterdir():
            if file.name not in names:
                (folder / file.name).write_bytes(file.read_bytes())
        return folder.name

    for missing, said in [
        (without("vocab.txt"), "has no tokenizer"),
        (without("config.json"), "has no config.json"),
        (without("model.safetensors"), "has no weights in"),
        ("./nowhere", "is no folder"),
        ("no such name", "nor a name on the hub"),
        ("grace/no-such-model", "nor to be had from the hub"),
    ]:
        with pytest.raises(BadInput, match=said) as refused:
            texts_of(tmp_path, Path(missing), ROWS) if missing[0] != "." else model_folder(missing, tmp_path)
        assert "\n" not in str(refused.value)


def test_a_package_is_looked_into_without_being_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "shipped_texts"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "some.csv").write_text("text,label\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert file_of("package:shipped_texts/some.csv", Path("/else")) == package / "some.csv"
    assert file_of("some.csv", Path("/else")) == Path("/else/some.csv")
    with pytest.raises(BadInput, match=r"package shipped_texts holds no other.csv"):
        file_of("package:shipped_texts/other.csv", Path())
    for none in ("package:not_installed/a.csv", "package:json.decoder/a.csv", "package:"):
        with pytest.raises(BadInput, match=r"no package .* is installed here"):
            file_of(none, Path())


def test_the_toml_s_folder_is_where_paths_are_from_and_no_option(tmp_path: Path, bert: Path) -> None:
    write_rows(tmp_path / "texts.jsonl", ROWS)
    options = {"data": "texts.jsonl", "model": str(bert), "id": "id", "max_length": LENGTH}
    workload = load_workload(load(write_toml(tmp_path, "text_classification", options)))
    assert len(workload.points()) > 40
    assert list((tmp_path / "ws" / "cache").iterdir()), "kept in the workspace"
    for wrong, said in [({"home": "/"}, r"workload\.options\.home: .* leave the option out"), ({"hed": 1}, "hed")]:
        with pytest.raises(BadInput, match=said):
            load_workload(load(write_toml(tmp_path, "text_classification", options | wrong)))
