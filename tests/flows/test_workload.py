import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from flows.asking import inputs_of
from flows.config import load
from flows.errors import BadInput
from flows.workload import Batches, Home, Workload, check_losses, load_workload, seeded_model
from tests.flows.blobs import Blobs, Cloud
from tests.flows.helpers import BLOBS, write_toml


def loaded(folder: Path, entry: str = BLOBS, options: Mapping[str, Any] | None = None) -> Workload:
    return load_workload(load(write_toml(folder, entry, options)))


@pytest.fixture
def mine(tmp_path: Path) -> str:
    """A user's file `mine.py`, with a copy of the blobs beside it that it imports."""
    copy = tmp_path / "blobs_beside_the_toml.py"
    copy.write_text(Path(BLOBS.rpartition(":")[0]).read_text())
    (tmp_path / "mine.py").write_text("from blobs_beside_the_toml import Blobs\n\nclass Mine(Blobs):\n    pass\n")
    return "mine.py"


def test_a_class_is_loaded_by_file_beside_the_toml_which_may_import_its_neighbours(tmp_path: Path, mine: str) -> None:
    assert type(loaded(tmp_path, f"{mine}:Mine")).__name__ == "Mine"


def test_a_class_is_loaded_by_dotted_name(tmp_path: Path) -> None:
    assert isinstance(loaded(tmp_path, "tests.flows.blobs:Blobs"), Blobs)


def test_a_package_that_only_the_current_folder_or_pythonpath_offers_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "stray_module.py").write_text(Path(BLOBS.rpartition(":")[0]).read_text())
    monkeypatch.syspath_prepend(str(elsewhere))
    refused = r"stray_module.py is found through the current folder or PYTHONPATH alone; put it beside"
    with monkeypatch.context() as here:
        here.chdir(elsewhere)
        with pytest.raises(BadInput, match=refused):
            loaded(tmp_path, "stray_module:Blobs")
    with monkeypatch.context() as path:
        path.setenv("PYTHONPATH", f"/nowhere:{elsewhere}")
        with pytest.raises(BadInput, match=refused):
            loaded(tmp_path, "stray_module:Blobs")
        assert type(loaded(elsewhere, "stray_module:Blobs")).__name__ == "Blobs", "beside the TOML it is meant"


@pytest.mark.parametrize("how", ["pth", "finder"])
def test_an_editable_install_of_the_project_in_the_current_folder_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    project, packages = tmp_path / "project", tmp_path / "packages"
    project.mkdir()
    packages.mkdir()
    name = f"editable_by_{how}"
    (project / f"{name}.py").write_text(Path(BLOBS.rpartition(":")[0]).read_text())
    monkeypatch.setattr("site.getsitepackages", lambda: [str(packages)])
    monkeypatch.setenv("PYTHONPATH", str(project))
    monkeypatch.chdir(project)
    monkeypatch.syspath_prepend("")
    with pytest.raises(BadInput, match="through the current folder or PYTHONPATH alone"):
        loaded(tmp_path / "toml", f"{name}:Blobs")
    if how == "pth":
        (packages / "editable.pth").write_text(f"import os\n{project}\n")
    else:
        spec = importlib.util.spec_from_file_location(name, project / f"{name}.py")
        finder = SimpleNamespace(find_spec=lambda asked, *_: spec if asked == name else None)
        monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, finder])
    assert type(loaded(tmp_path / "toml", f"{name}:Blobs")).__name__ == "Blobs"


def test_a_built_in_is_loaded_by_its_name_and_given_its_options(tmp_path: Path) -> None:
    assert len(loaded(tmp_path, "tiny", {"rate": 0.0}).points()) == 200


@pytest.mark.parametrize(
    ("entry", "options", "parts"),
    [
        ("nothing", {}, ("workload.class = 'nothing'", "digits, fashion_mnist, ", "file.py:Class")),
        ("none.py:Mine", {}, ("none.py: no such file",)),
        ("no.such.module:Mine", {}, ("No module named 'no'", "beside the TOML")),
        ("mine.py:Missing", {}, ("mine.py has no class Missing", "it has ['Mine']")),
        ("mine.py:Blobs.x", {}, ("has no class Blobs.x",)),
        ("bare.py:Bare", {}, ("workload Bare lacks loss, logits, labels",)),
        ("importer.py:Mine", {}, ("No module named 'not_there'",)),
        (BLOBS, {"colour": "red"}, ("workload.options", "colour")),
        ("tiny", {"rate": "0.1"}, ("workload.options: Tiny cannot be made of them; is one of another type?", "'str'")),
        ("tiny", {"rate": 2.0}, ("workload.options: rate = 2.0: give a share from 0 to 1",)),
    ],
)
def test_what_cannot_be_loaded_is_refused_in_one_line(
    tmp_path: Path, mine: str, entry: str, options: dict[str, Any], parts: tuple[str, ...]
) -> None:
    methods = "".join(f"    def {name}(self): ...\n" for name in ("model", "points", "queries", "holdout"))
    (tmp_path / "bare.py").write_text(f"class Bare:\n{methods}")
    (tmp_path / "importer.py").write_text("import not_there\n")
    with pytest.raises(BadInput) as refused:
        loaded(tmp_path, entry, options)
    for part in parts:
        assert part in str(refused.value)


class Uncached(Cloud):
    """The same samples with a text among the leaves, which no cache takes."""

    def __getitem__(self, index: int) -> Any:
        return *super().__getitem__(index), "text"


def test_cached_batches_are_those_made_one_by_one() -> None:
    rows = torch.tensor([5, 0, 5, 19])
    cached, made = Batches(Cloud(0, 20), default_collate), Batches(Uncached(0, 20), default_collate)
    assert cached._whole is not None
    assert made._whole is None
    samples, labels = cached.take(rows)
    others, other_labels, _ = made.take(rows)
    assert samples.equal(others)
    assert labels.equal(other_labels)


class AtOnce(Cloud):
    """A cloud that makes its batches itself, `shift` rows further on."""

    shift = 0

    def batch_of(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        rows = (rows + self.shift) % len(self)
        return self.samples[rows], torch.tensor(self.labels)[rows]


def test_a_set_that_makes_its_batches_itself_is_asked_for_them_and_for_two_samples() -> None:
    points, rows = AtOnce(0, 20), torch.tensor([5, 0, 5, 19])
    expected = default_collate([points[row] for row in rows.tolist()])
    batches = Batches(points, default_collate)
    points.samples = points.samples + 1  # no sample is kept from before
    taken = batches.take(rows)
    assert taken[0].equal(expected[0] + 1)
    assert taken[1].equal(expected[1])


def test_batches_that_are_not_those_of_the_samples_are_refused() -> None:
    shifted = AtOnce(0, 20)
    shifted.shift = 1
    with pytest.raises(BadInput, match=r"batch_of\(rows\) gives another batch"):
        Batches(shifted, default_collate)


def test_a_collation_that_depends_on_the_whole_batch_is_done_for_each_batch() -> None:
    def centred(samples: list[Any]) -> Tensor:
        batch: Tensor = default_collate(samples)[0]
        return batch - batch.mean(0)

    points, rows = Cloud(0, 20), torch.tensor([3, 4])
    assert Batches(points, centred).take(rows).equal(centred([points[3], points[4]]))


def test_neighbours_are_measured_on_the_first_floating_tensor_or_on_what_the_workload_says() -> None:
    workload: Any = Blobs()
    batch = {"label": torch.tensor([1, 2]), "image": torch.ones(2, 3, 4)}
    assert inputs_of(workload, batch).shape == (2, 12)
    with pytest.raises(BadInput, match="no floating tensor"):
        inputs_of(workload, {"label": torch.tensor([1, 2])})
    workload.inputs = lambda batch: batch["label"][:, None].float()
    assert inputs_of(workload, batch).tolist() == [[1.0], [2.0]]


def test_a_model_depends_on_its_seed_alone_and_leaves_the_global_seed_as_it_was() -> None:
    def weights(seed: int) -> Tensor:
        return nn.utils.parameters_to_vector(seeded_model(Blobs(), seed).parameters())

    before = torch.random.get_rng_state()
    first = weights(3)
    torch.rand(7)
    assert weights(3).equal(first)
    assert not weights(4).equal(first)
    torch.random.set_rng_state(before)
    weights(5)
    assert torch.random.get_rng_state().equal(before)


def test_a_reduced_loss_is_told_by_its_shape_and_a_nan_by_its_point() -> None:
    rows, ids = torch.tensor([2, 0]), ["a", "b", "c"]
    with pytest.raises(BadInput, match=r"shape \[\] for 2 points.*reduction='none'"):
        check_losses(torch.tensor(1.0), rows, ids)
    with pytest.raises(BadInput, match="the loss of point c is not finite"):
        check_losses(torch.tensor([torch.nan, 1.0]), rows, ids)


class AtHome(Blobs):
    """Asks where it is."""

    def __init__(self, home: Home) -> None:
        super().__init__()
        self.home = home


def test_a_workload_that_asks_is_told_the_folder_of_the_toml_and_a_cache(tmp_path: Path) -> None:
    workload: Any = loaded(tmp_path, "tests.flows.test_workload:AtHome")
    assert (workload.home.folder, workload.home.cache) == (tmp_path, tmp_path / "ws" / "cache")
    with pytest.raises(BadInput, match=r"workload\.options\.home: AtHome is given the TOML's folder; leave the option"):
        loaded(tmp_path, "tests.flows.test_workload:AtHome", {"home": "elsewhere"})
