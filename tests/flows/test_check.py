import re
from pathlib import Path
from typing import Any

import pytest

from flows.check import check, require
from flows.config import load
from flows.errors import BadInput
from tests.flows.blobs import Blobs, Cloud
from tests.flows.helpers import write_toml
from tests.flows.small_texts import Texts


@pytest.mark.parametrize("fault", ["", "numpy ids"])
def test_a_sound_workload_passes_every_line(tmp_path: Path, fault: str) -> None:
    findings = check(load(write_toml(tmp_path, options={"fault": fault})))
    passed = [finding.name for finding in findings if finding.ok]
    assert passed == ["workload", "model", "sets", "losses", "blocks", "probe", "device"]
    assert "120 train, 60 query, 150 holdout points" in findings[2].text
    assert findings[4].text == "hidden, head: 51 parameters, 100.0% of the model, 100.0% of the gradient energy"


@pytest.mark.parametrize(
    ("fault", "name", "parts"),
    [
        ("reduced", "losses", ("shape []", "one loss per point", "reduction='none'")),
        ("nan", "losses", ("the loss of point 7 is not finite",)),
        ("smoothed", "losses", ("not the cross-entropy of the logits",)),
        ("label outside", "losses", ("label 7 is outside 0 … 2",)),
        ("overlap", "sets", ("train", "query")),
        ("duplicate ids", "sets", ("0",)),
        ("unused layer", "blocks", ("'aaa' is not called",)),
        ("rescaled head", "blocks", ("'head' does not produce the logits as they are",)),
        ("no forward derivative", "probe", ("forward derivatives of Net", "jvp", "set scoring.probe = 0")),
        ("nothing learns", "blocks", ("none of hidden, head is trained; choose",)),
    ],
)
def test_what_is_wrong_stands_in_its_line_before_a_cycle_spends_anything(
    tmp_path: Path, fault: str, name: str, parts: tuple[str, ...]
) -> None:
    config = load(write_toml(tmp_path, options={"fault": fault}))
    [wrong] = [finding for finding in check(config) if not finding.ok]
    assert wrong.name == name
    for part in parts:
        assert part in wrong.text
    with pytest.raises(BadInput, match=r"^[^\n]+$"):
        require(config)


def test_what_is_asked_after_the_training_is_asked_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load(write_toml(tmp_path, "tests.flows.blobs:Blobs"))
    monkeypatch.setattr(Blobs, "inputs", lambda self, batch: batch[0][None], raising=False)
    with pytest.raises(BadInput, match=r"inputs\(batch\) gave shape \[1, 32, 2\] for 32 points: give \[B, d\]"):
        require(config)
    monkeypatch.setattr(Blobs, "inputs", lambda self, batch: batch[0])
    monkeypatch.setattr(Blobs, "for_folds", lambda self: (Blobs(fault="nan"), {}), raising=False)
    with pytest.raises(BadInput, match="the loss of point 7 is not finite"):
        require(config)


@pytest.mark.parametrize("action", ["remove", "relabel"])
def test_relabeling_is_refused_where_labels_cannot_be_put_into_a_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    monkeypatch.setattr(Cloud, "__getitem__", lambda self, row: (self.samples[row], self.labels[row], self.labels[row]))
    config = load(write_toml(tmp_path, "tests.flows.blobs:Blobs", pruning={"mislabeled_action": action}))
    wrong = [finding for finding in check(config) if not finding.ok]
    assert [finding.name for finding in wrong] == ["losses"] * (action == "relabel")
    if wrong:
        assert "2 integer tensors of a batch are its labels" in wrong[0].text
        assert "with_labels(batch, labels) -> batch" in wrong[0].text


@pytest.mark.parametrize(
    ("sections", "parts"),
    [
        ({"scoring": {"blocks": ["encoder.*"]}}, ("'encoder.*'", "hidden", "head")),
        (
            {"scoring": {"placement": "split", "ranks": 3}, "launch": {"oversubscribe": True}},
            ("scoring.ranks = 3, and 2 blocks to split over them", "'replicated'"),
        ),
        ({"training": {"turn_over": ["encoder"]}}, ("turn-over layer 'encoder': the model has hidden",)),
        ({"pruning": {"protected": [5, 9999]}}, ("pruning.protected: [9999] not in the train set",)),
        ({"pruning": {"protected": ["5"]}}, ("pruning.protected: ['5']", "int ids")),
        ({"pruning": {"protected_file": "gone.txt"}}, ("pruning.protected_file", "gone.txt", "one a line")),
        (
            {"pruning": {"protected_file": "ids.txt"}},
            (
                "pruning.protected_file",
                "ids.txt: ['9999'] not in the train",
            ),
        ),
        ({"pruning": {"protected_groups": ["clinic"]}}, ("pruning.protected_groups: ['clinic']: no point",)),
    ],
)
def test_settings_that_do_not_fit_the_workload_are_found(
    tmp_path: Path, sections: dict[str, Any], parts: tuple[str, ...]
) -> None:
    (tmp_path / "ids.txt").write_text("5\n9999\n")
    [wrong] = [finding for finding in check(load(write_toml(tmp_path, **sections))) if not finding.ok]
    for part in parts:
        assert part in wrong.text


@pytest.mark.parametrize("selected", [["head"], ["*"]])
def test_a_layer_that_is_called_twice_does_no_harm(tmp_path: Path, selected: list[str]) -> None:
    file = write_toml(tmp_path, options={"fault": "layer called twice"}, scoring={"blocks": selected})
    assert all(finding.ok for finding in check(load(file)))


def test_a_workload_that_does_not_load_stops_the_check_there(tmp_path: Path) -> None:
    findings = check(load(write_toml(tmp_path, "none.py:None")))
    assert [(finding.name, finding.ok) for finding in findings] == [("workload", False), ("device", True)]


def test_blocks_that_an_estimator_does_not_take_are_found_before_anything_is_trained(tmp_path: Path) -> None:
    config = load(write_toml(tmp_path, "digits", {"hidden": [64, 32]}, scoring={"estimator": "dense"}))
    [wrong] = [finding for finding in check(config) if not finding.ok]
    assert wrong.name == "blocks"
    assert "6570 parameters, the exact solver takes up to 4096" in wrong.text


def test_blocks_chosen_by_energy_may_be_others_after_the_training(tmp_path: Path) -> None:
    config = load(write_toml(tmp_path, scoring={"blocks": "auto"}))
    said = next(finding.text for finding in check(config) if finding.name == "blocks")
    assert said.endswith("of the gradient energy (chosen anew after training)")


def test_what_has_no_probe_says_so(tmp_path: Path) -> None:
    findings = check(load(write_toml(tmp_path, scoring={"probe": 0})))
    [probe] = [finding for finding in findings if finding.name == "probe"]
    assert probe.text.startswith("off")


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (lambda self, point: self.nowhere, r"tokens\('line 0'\) breaks \(AttributeError: .*nowhere"),
        (lambda self, point: "a text", r"tokens\('line 0'\) gives a str: give a list of texts"),
        (lambda self, point: [1, 2, 3], r"tokens\('line 0'\) gives a list: give a list of texts"),
        (lambda self, point: ["one"], r"tokens\('line 0'\) gives 1 texts, and the scored layers have \d positions"),
    ],
)
def test_a_broken_tokens_is_found_before_a_cycle_spends_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokens: Any, said: str
) -> None:
    config = load(write_toml(tmp_path, "tests.flows.small_texts:Texts"))
    assert all(finding.ok for finding in check(config))
    monkeypatch.setattr(Texts, "facets", lambda self: {})  # which here asks for tokens, too
    monkeypatch.setattr(Texts, "tokens", tokens)
    [wrong] = [finding for finding in check(config) if not finding.ok]
    assert wrong.name == "blocks"
    assert re.match(said, wrong.text)
    assert "\n" not in wrong.text
