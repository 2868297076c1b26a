"""What docs/texts.md is computed from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flows.asking import task_of
from influence import available, exact_influence
from tests.flows.texts import LENGTH, save_bert, sentences, write_rows
from tests.proof import text_models, texts
from tests.proof.text_blocks import CHOICES, Compared, Size, Way, learned, measure
from tests.proof.text_cells import Removal, Signals, measure_removal, measure_signals, sets_of
from tests.proof.text_models import Bench, Outcome
from tests.proof.text_page import Cells, page
from tests.proof.texts import Folder

TOML = f"""
[workload]
class = "text_classification"

[workload.options]
data = "texts.parquet"
id = "id"
model = "bert"
head = "mean"
train_layers = 2
max_length = {LENGTH}
query_share = 0.2
holdout_share = 0.3
flips = 0.1

[training]
epochs = 8
batch_size = 16
learning_rate = 1e-3
checkpoints = [0.5, 1.0]

[scoring]
blocks = {{ last = 7 }}
folds = 2
repeats = 1
"""


@pytest.fixture
def few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The reviews are sentences of a dozen words, and MiniLM is a BERT of three small layers."""
    save_bert(tmp_path / "bert")
    write_rows(tmp_path / "texts.parquet", sentences(120))
    (tmp_path / "tamis.toml").write_text(TOML)
    monkeypatch.setattr(text_models, "SETS", {"reviews": tmp_path / "tamis.toml"})
    monkeypatch.setattr(text_models, "CACHE", tmp_path / "cache")
    return tmp_path


@pytest.fixture
def signals() -> Signals:
    found = {"suspicion": (0.9, 0.5), "loss": (0.8, 0.4), "kNN": (0.6, 0.2)}
    removed = {"nothing": [], "suspicion": [1], "loss": [2], "the truth": [1]}
    return Signals((900, 50, 400), 90, found, removed, 0.09, 30, 0.8, {"all": 60.0, "training": 40.0, "influence": 9.0})


def ends(**accuracies: float) -> dict[str, Outcome]:
    return {name.replace("_", " "): Outcome(value, 0.5) for name, value in accuracies.items()}


def test_parts_of_like_length_change_no_logit(few: Path) -> None:
    bench = Bench("reviews", 0)
    model, batch = bench.train(torch.zeros_like(bench.wrong), 0)[-1], bench.points.take(range(len(bench.points)))
    with torch.no_grad():
        torch.testing.assert_close(bench.workload.logits(model, batch), bench.whole.logits(model, batch))
        torch.testing.assert_close(bench.logits(model, bench.points), bench.whole.logits(model, batch))


def test_the_yardstick_is_the_exact_influence_of_the_probe(few: Path) -> None:
    bench = Bench("reviews", 0)
    model = bench.train(torch.zeros_like(bench.wrong), 0)[-1].eval()
    fitted, asked, queries = torch.arange(30), torch.arange(40, 46), len(bench.queries)
    found = bench.exact(model, learned, fitted, asked, 2)
    groups = [range(queries), range(1), range(1, 2)]
    truth = exact_influence(
        model,
        task_of(bench.whole),
        [bench.points.take(fitted)],
        [bench.points.take(row) for row in asked.split(1)],
        [[bench.queries.take(group)] for group in groups],
        [name for name, parameter in model.named_parameters() if parameter.requires_grad],
        bench.training.weight_decay,
        len(bench.points),
    )
    assert {block.name for block in learned(model)} == {block.name for block in available(model)}
    ours = torch.cat([found.mean[:, None], found.single], 1)
    assert (ours - truth).norm() < 1e-2 * truth.norm()


def test_influence_of_some_points_is_what_it_is_among_all(few: Path) -> None:
    bench = Bench("reviews", 0)
    models = bench.train(torch.zeros_like(bench.wrong), 0)
    everyone, asked = torch.arange(len(bench.points)), torch.tensor([7, 3, 20])
    whole = bench.estimated(models, learned, 2)
    some = bench.estimated(models, learned, 2, everyone, asked)
    torch.testing.assert_close(some.mean, whole.mean[asked], rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(some.single, whole.single[asked], rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(some.own, whole.own[asked], rtol=1e-4, atol=1e-7)


def test_lora_is_asked_on_its_adapters_and_the_head(few: Path) -> None:
    bench = Bench("reviews", 0, points=40)
    model = bench.train(torch.zeros_like(bench.wrong), 0, adapted=True)[-1]
    names = [block.name for block in CHOICES["LoRA"](model)]
    assert sum("lora_A" in name for name in names) == sum("lora_B" in name for name in names) == 4
    assert names[-1].endswith("modules_to_save.default")
    assert sum(block.parameters for block in CHOICES["LoRA"](model)) == sum(
        parameter.numel() for parameter in model.parameters() if parameter.requires_grad
    )


def test_a_whole_cell_of_each_kind(few: Path) -> None:
    found = measure_signals("reviews", 0, None, None)
    assert found.texts[0] > 40
    assert found.wrong == len(found.removed["loss"]) == len(found.removed["the truth"]) == round(0.1 * found.texts[0])
    assert found.found["loss"] == found.found["EL2N"]  # of two classes they rank alike
    bench = Bench("reviews", 0)
    ids, truth = bench.points.ids, bench.whole.truth()
    given = dict(zip(bench.whole.points().ids, bench.whole.points().labels, strict=True))
    assert {ids[place] for place in found.removed["the truth"]} == {one for one in ids if truth[one] != given[one]}
    removal = measure_removal(found, "reviews", 0, 1)
    assert set(removal.outcomes) == set(found.removed)
    assert removal.outcomes["loss"] == removal.outcomes["EL2N"]
    compared = measure(Size(True, 40, 20, 20, 1), 0)
    assert set(compared.ways) == set(CHOICES) - {"LoRA"} <= set(compared.outcomes)


def test_as_many_are_removed_as_are_wrong_and_ties_go_to_the_first() -> None:
    wrong = torch.tensor([False, True, False, True, False])
    chosen = sets_of({"loss": torch.tensor([0.0, 3.0, 2.0, 2.0, 1.0])}, wrong, 0)
    assert chosen["nothing"] == []
    assert chosen["loss"] == [1, 2]
    assert chosen["the truth"] == [1, 3]
    assert len(chosen["random"]) == 2


def test_a_cell_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signals: Signals) -> None:
    monkeypatch.setattr(texts, "measure_signals", lambda *_: signals)
    assert Folder(tmp_path).signals("reviews", 3) == signals
    monkeypatch.setattr(texts, "measure_signals", lambda *_: pytest.fail("measured again"))
    assert Folder(tmp_path).signals("reviews", 3) == signals
    assert Folder(tmp_path).cells().signals == {"reviews": {3: signals}, "newsgroups": {}}


def test_the_page_says_what_is_measured_and_gives_gains_by_seed(signals: Signals) -> None:
    turns = [
        Removal(ends(nothing=0.70, suspicion=0.72, loss=0.69, the_truth=0.74), 60.0),
        Removal(ends(nothing=0.72, suspicion=0.74, loss=0.71, the_truth=0.76), 60.0),
    ]
    text = page(
        Cells(
            {"reviews": {0: signals, 1: signals}, "newsgroups": {}},
            {"reviews": {0: turns, 1: turns}, "newsgroups": {}},
            {"blocks": [], "full": []},
            seeds=5,
            turns=2,
        )
    )
    assert "signals of reviews 2 of 5, retrainings of reviews 4 of 10, signals of newsgroups 0 of 5" in text
    assert "blocks 0 of 5, full 0 of 5." in text
    assert "| suspicion | 0.900 ± 0.000 | 0.500 ± 0.000 | 0.7300 ± 0.0000 | 0.500 ± 0.000 | +2.00 ± 0.00 |" in text
    assert "| kNN | 0.600 ± 0.000 | 0.200 ± 0.000 | - | - | - |" in text
    assert "| the truth | - | - | 0.7500 ± 0.0000 | 0.500 ± 0.000 | +4.00 ± 0.00 |" in text
    assert ", 6 minutes of CPU;" in text


def test_the_page_compares_cost_with_that_of_the_head(signals: Signals) -> None:
    head = Way(770, 2.0, (0.9, 0.8), (0.7, 0.6), {"influence": (0.6, 0.2), "own": (0.5, 0.1)})
    ways = {"the head": head, "all linear layers": replace(head, parameters=3_500_000, seconds=50.0)}
    outcomes = {name: Outcome(0.7, 0.5) for name in (*ways, "nothing", "random", "suspicion", "the truth")}
    one = Compared(Size(False, 1000, 3000, 200, 2), 100, ways, outcomes, 3_600_000, {"plain": 20.0}, 90.0, 600.0)
    text = page(Cells({}, {}, {"blocks": [one]}, seeds=5, turns=2))
    assert "| all linear layers | 3,500,000 | 0.70 / 0.60 | 0.90 / 0.80 | 50 s, 25.0 x | 0.60 / 0.20 |" in text
    assert "| nothing | - | - | - | - | - | 0.7000 | 0.500 | +0.00 |" in text
