"""A model of texts gives a point the same scores in any batch, and is the same where its lower layers run once."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flows.asking import inputs_of
from flows.check import check
from flows.config import TrainingConfig, load
from flows.errors import BadInput
from flows.facets import facets_of
from flows.ranks.folds import OutOfFold
from flows.ranks.plain import train_plainly
from flows.ranks.points import Points
from flows.ranks.rank import Rank
from flows.recipe import steps_for
from flows.sections.training import DropConfig
from flows.workload import Batches, Workload, collate_of, for_folds, seeded_model
from flows.workloads.text import frozen as frozen_module
from flows.workloads.text.classification import HEAD_ALONE
from flows.workloads.text.library import load_model
from flows.workloads.text.tokens import Batch, Tokens, keys_of, padded
from influence import EKFAC, Blocks, Curvature, Damping, GaussNewton, Identity, Influence, Task, select
from influence.blocks import features
from tests.flows.helpers import write_toml
from tests.flows.texts import LENGTH, save_bert, sentences, texts_of, write_rows

ROWS = sentences(60)
SAME = 1e-5


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("models") / "bert")


def whole_set(workload: Any) -> Batch:
    points = workload.points()
    return Batches(points, collate_of(workload)).take(torch.arange(len(points)))


def wider(batch: Batch, by: int) -> Batch:
    """The same points with so much more padding."""
    pad = {name: torch.nn.functional.pad(batch[name], (0, by)) for name in ("input_ids", "attention_mask")}
    return batch | pad


def far(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("head", ["mean", "model"])
@pytest.mark.parametrize("trained", [0, 1, 3])
def test_lower_layers_that_ran_once_give_the_logits_of_the_whole_model(
    tmp_path: Path, bert: Path, head: str, trained: int
) -> None:
    whole, upper = (texts_of(tmp_path, bert, ROWS, head=head, train_layers=layers) for layers in (None, trained))
    models = [seeded_model(workload, 3).eval() for workload in (whole, upper)]
    batch = whole_set(whole)
    with torch.no_grad():
        expected, found = (work.logits(model, batch) for work, model in zip((whole, upper), models))
    assert far(found, expected) < SAME
    names = [{name for name, _ in model.named_parameters()} for model in models]
    assert names[1] < names[0], "the trained layers keep their names, and nothing is left of the others"
    assert sum(".layer." in name and name.endswith("output.LayerNorm.weight") for name in names[1]) == 2 * trained


def test_the_seed_draws_the_head_alone(tmp_path: Path, bert: Path) -> None:
    workload = texts_of(tmp_path, bert, ROWS, head="model", train_layers=1)
    states = [seeded_model(workload, seed).state_dict() for seed in (0, 0, 1)]
    assert all(states[0][name].equal(states[1][name]) for name in states[0])
    assert {name for name in states[0] if not states[0][name].equal(states[2][name])} == {"classifier.weight"}


def test_the_frozen_layers_run_once_and_again_for_other_texts_or_another_cut(
    tmp_path: Path, bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def counted(*given: Any) -> None:
        made.append(1)
        write(*given)

    write = frozen_module._write
    monkeypatch.setattr(frozen_module, "_write", counted)

    def read(**options: Any) -> Tensor:
        workload = texts_of(tmp_path, bert, options.pop("rows", ROWS), **options)
        return inputs_of(workload, whole_set(workload))

    assert read(train_layers=1).equal(read(train_layers=1))
    assert len(made) == 1
    read(train_layers=2)
    read(train_layers=1, rows=ROWS[:-1])
    assert len(made) == 3


def test_the_one_run_of_the_frozen_layers_shows_how_far_it_is(
    tmp_path: Path, bert: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for said in ("running the frozen layers: 0 of ", ""):
        workload = texts_of(tmp_path, bert, ROWS, train_layers=1)
        inputs_of(workload, whole_set(workload))
        shown = capsys.readouterr().err
        assert said in shown
        assert bool(said) == bool(shown)


def test_a_frozen_part_that_was_left_half_written_is_made_anew(tmp_path: Path, bert: Path, monkeypatch: Any) -> None:
    def broken(*_: Any) -> None:
        raise KeyboardInterrupt

    workload = texts_of(tmp_path, bert, ROWS, train_layers=1)
    batch = whole_set(workload)
    with monkeypatch.context() as patch:
        patch.setattr(frozen_module, "mean_of", broken)
        with pytest.raises(KeyboardInterrupt):
            workload.inputs(batch)
    assert not list((tmp_path / "cache").glob("frozen-*"))
    assert workload.inputs(whole_set(workload)).norm(dim=1).sub(1).abs().max() < SAME


def test_a_key_is_of_the_tokens_and_not_of_their_padding() -> None:
    batch = padded([torch.tensor(row) for row in ([5, 6], [6, 5], [5, 6, 0], [5])], padding=0)
    keys = keys_of(batch)
    assert len(keys.unique()) == 4, "a padding token that is meant counts"
    assert keys_of(wider(batch, 7)).equal(keys)


def test_a_text_of_no_set_is_refused(tmp_path: Path, bert: Path) -> None:
    workload = texts_of(tmp_path, bert, ROWS, train_layers=1)
    batch = padded([torch.tensor([2, 4, 4, 4, 3])], padding=0) | {"labels": torch.tensor([0])}
    with pytest.raises(BadInput, match="in none of the sets"):
        workload.logits(workload.model(), batch)


CURVATURES: dict[str, Callable[[Blocks], Curvature]] = {"ekfac": EKFAC, "dense": GaussNewton, "identity": Identity}


@pytest.mark.parametrize("trained", [None, 1])
@pytest.mark.parametrize("curvature", list(CURVATURES))
def test_padding_batch_size_and_order_change_no_score(
    tmp_path: Path, bert: Path, curvature: str, trained: int | None
) -> None:
    workload = texts_of(tmp_path, bert, ROWS, head="model", train_layers=trained)
    model = seeded_model(workload, 0)
    names = ("*layer.2.attention.self.value", "*layer.2.output.dense", "classifier")
    chosen = tuple(block for block in select(model, features) if any(Path(block.name).match(name) for name in names))
    assert len(chosen) == 3
    train, queries = (Batches(points, collate_of(workload)) for points in (workload.points(), workload.queries()))
    count, asked = len(workload.points()), torch.arange(len(workload.queries()))

    def scored(order: Tensor, size: int, padding: int) -> list[Tensor]:
        batches = [wider(train.take(rows), padding) for rows in order.split(size)]
        task = Task[Batch](workload.logits, workload.labels)
        with Influence(model, task, CURVATURES[curvature](chosen), chosen) as engine:
            engine.fit(batches, Damping("absolute", 1e-2))
            pairs = engine.pairs(batches, [wider(queries.take(asked), padding)])
        own = pairs.own
        back = order.argsort()
        return [pairs.influence[back], pairs.classification[back], own.self_influence[back]]

    expected = scored(torch.arange(count), count, 0)
    shuffled = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    for order, size, padding in [(shuffled, 7, 0), (torch.arange(count), count, 5), (shuffled, 1, 2)]:
        assert all(far(found, known) < SAME for found, known in zip(scored(order, size, padding), expected))


def test_out_of_fold_models_train_a_head_alone_by_a_recipe_of_their_own(
    tmp_path: Path, bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workload = texts_of(tmp_path, bert, ROWS, train_layers=1)
    asked: list[tuple[int, float, int]] = []

    def spied(
        light: Workload, points: Points, recipe: TrainingConfig, places: Tensor, *given: Any, **more: Any
    ) -> None:
        weights = sum(parameter.numel() for parameter in light.model().parameters())
        asked.append((weights, recipe.learning_rate, given[1]))
        train_plainly(light, points, recipe, places, *given, **more)

    monkeypatch.setattr("flows.ranks.folds.train_plainly", spied)
    rank = Rank(0, 1, tmp_path / "beat")
    monkeypatch.setattr(rank, "sum", lambda tensor: None)
    training = TrainingConfig(epochs=1, learning_rate=1e-5, batch_size=16)
    points = Points("train", workload.points(), workload)
    said = OutOfFold(workload, points, training, 2, rank, share=0.5).log_probabilities(points.in_train, 1, 2)
    steps = HEAD_ALONE["epochs"] * 2  # 16 points and the rest, however early the baseline stopped
    assert asked == [(2 * (16 + 1), HEAD_ALONE["learning_rate"], steps)] * 2
    assert said.exp().sum(1).allclose(torch.ones(len(points)).double(), atol=0.2)


def test_a_recipe_for_folds_with_an_unknown_key_is_refused(tmp_path: Path, bert: Path, monkeypatch: Any) -> None:
    workload = texts_of(tmp_path, bert, ROWS)
    monkeypatch.setattr(workload, "for_folds", lambda: (workload, {"rate": 1}))
    with pytest.raises(BadInput, match=r"for_folds\(\) of TextClassification: rate is no key of \[training\]"):
        for_folds(workload, TrainingConfig())


def test_a_recipe_for_folds_is_checked_as_the_cycles_own_is(tmp_path: Path, bert: Path, monkeypatch: Any) -> None:
    workload = texts_of(tmp_path, bert, ROWS)
    drops = DropConfig(from_epoch=20)
    cycle = TrainingConfig(epochs=40, ranks=2, prune_while_learning=drops)
    assert for_folds(workload, cycle)[1].epochs == HEAD_ALONE["epochs"], "no point is dropped in training these"
    masked = TrainingConfig(turn_over=("encoder",))
    assert for_folds(workload, masked)[1].turn_over == ()
    monkeypatch.setattr(workload, "for_folds", lambda: (object(), {"epochs": 0, "batch_size": "many"}))
    with pytest.raises(BadInput, match=r"for_folds\(\) of TextClassification: epochs: .* batch_size: .*; mend the rec"):
        for_folds(workload, TrainingConfig())


def test_a_folder_saved_in_bfloat16_is_loaded_in_float32(tmp_path: Path, bert: Path) -> None:
    saved = load_model("AutoModel", bert)
    assert saved.to(torch.bfloat16).dtype == torch.bfloat16
    saved.save_pretrained(shutil.copytree(bert, tmp_path / "half"))
    kinds = ("AutoModel", "AutoModelForSequenceClassification")
    found = {one.dtype for kind in kinds for one in load_model(kind, tmp_path / "half").parameters()}
    assert found == {torch.float32}


def test_the_last_layer_and_the_head_learn_the_texts(tmp_path: Path, bert: Path) -> None:
    workload = texts_of(tmp_path, bert, ROWS, train_layers=1)
    training = TrainingConfig(epochs=80, learning_rate=1e-2, batch_size=16)
    points, found = Points("train", workload.points(), workload), []
    steps, everyone = steps_for(training, len(points)), torch.arange(len(points))

    def ask(model: nn.Module) -> None:
        found.append((workload.logits(model, points.take(everyone)).argmax(1) == points.labels).double().mean())

    train_plainly(workload, points, training, everyone, 0, steps, [steps], ask)
    assert found[0] > 0.9


@pytest.mark.parametrize("trained", [None, 2])
def test_a_check_finds_everything_in_order(tmp_path: Path, bert: Path, trained: int | None) -> None:
    write_rows(tmp_path / "texts.jsonl", ROWS)
    options = {"data": "texts.jsonl", "model": str(bert), "id": "id", "max_length": LENGTH, "query_share": 0.2}
    options |= {} if trained is None else {"train_layers": trained}
    findings = check(load(write_toml(tmp_path, "text_classification", options)))
    assert [finding.text for finding in findings if not finding.ok] == []
    assert "probe" in [finding.name for finding in findings]


@pytest.mark.parametrize("trained", [-1, 4])
def test_more_layers_than_there_are_cannot_be_trained(tmp_path: Path, bert: Path, trained: int) -> None:
    with pytest.raises(BadInput, match=rf"train_layers = {trained}: BertModel has 3 layers"):
        texts_of(tmp_path, bert, ROWS, train_layers=trained).model()


def test_a_model_that_computes_something_else_without_its_lower_layers_is_refused(tmp_path: Path, bert: Path) -> None:
    whole: Any = seeded_model(texts_of(tmp_path, bert, ROWS), 0)
    lowest, highest = whole.encoder.encoder.layer[0], whole.encoder.encoder.layer[2]

    said: list[bool] = []  # by the lowest layer, to the highest
    lowest.register_forward_hook(lambda *_: said.append(True))
    highest.register_forward_pre_hook(
        lambda module, given: (given[0].flip(2), *given[1:]) if said and said.pop() else None
    )
    tokens = Tokens(torch.tensor([2, 5, 3, 2, 6, 3]), torch.tensor([0, 3, 6]), 0)
    with pytest.raises(BadInput, match="computes something else when it is entered at layer 1"):
        frozen_module.make(whole, 2, tokens, tmp_path / "frozen")
    assert not (tmp_path / "frozen").exists()


def test_a_text_has_a_string_for_each_position_and_facets(tmp_path: Path, bert: Path) -> None:
    workload = texts_of(tmp_path, bert, ROWS)
    points, facets = workload.points(), workload.facets()
    width = workload.collate([points[0]])["input_ids"].shape[1]
    assert len(workload.tokens(points.ids[0])) == width == facets["length"][0]
    assert set(facets_of(workload).column_names) == {"point_id", *facets}
    assert facets["words"][0] == set(workload.describe(points.ids[0]).lower().split())
