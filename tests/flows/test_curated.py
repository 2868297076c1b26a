"""The torch data set of an export: what it hides, what it changes, what it refuses."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch.utils.data import DataLoader

from flows.curated import CuratedDataset
from flows.dataset import manifest_of
from flows.errors import BadInput
from storage.exports import write_export
from storage.views import Decisions
from tests.flows.blobs import Cloud

REMOVED, RELABELED = [4, 0, 11], {2: 1, 19: 0}


def relabel(sample: Any, label: int) -> Any:
    return sample[0], label


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An export of 20 points, 3 removed and 2 relabelled."""
    return exported(tmp_path, RELABELED)


def exported(folder: Path, relabeled: dict[int, int]) -> Path:
    manifest = manifest_of("train", Cloud(0, 20))
    manifest.write(folder / "m.parquet")
    table = manifest.table.select(["point_id", "content"])
    label = pa.array(list(relabeled.values()), pa.int32())
    changed = table.take(pa.array(list(relabeled), pa.int64())).append_column("label", label)
    write_export(folder / "out", folder / "m.parquet", Decisions(table.take(REMOVED), changed), 1, None, text=False)
    return folder / "out"


def test_removed_points_are_hidden_and_relabelled_ones_have_the_label_in_force(folder: Path) -> None:
    whole = Cloud(0, 20)
    curated = CuratedDataset(whole, folder, relabel)
    assert curated.ids == [row for row in range(20) if row not in REMOVED]
    assert len(curated) == len(curated.ids) == 17
    for place, point in enumerate(curated.ids):
        sample, label = curated[place]
        assert sample.equal(whole.samples[point])
        assert label == RELABELED.get(point, whole.labels[point])
        assert curated.labels is not None
        assert curated.labels[place] == label
    assert curated.groups is None
    assert curated[-1][1] == RELABELED[19]
    with pytest.raises(IndexError):
        curated[17]


def test_it_hashes_to_the_data_set_of_the_export(folder: Path) -> None:
    """As the trainer sees it: ids, samples and labels in force are those of the manifest without the removed points."""
    curated: Any = CuratedDataset(Cloud(0, 20), folder, relabel)
    whole = manifest_of("train", Cloud(0, 20)).view(REMOVED, RELABELED)
    found = manifest_of("train", curated)
    for column in ("point_id", "inputs", "label", "group"):
        assert found.table[column].equals(whole.table[column])


def test_rows_in_another_order_are_the_same_data_set(folder: Path) -> None:
    turned = Cloud(0, 20)
    turned.samples, turned.labels, turned.ids = turned.samples.flip(0), turned.labels[::-1], turned.ids[::-1]
    curated = CuratedDataset(turned, folder, relabel)
    assert curated.ids == [row for row in range(19, -1, -1) if row not in REMOVED]
    place = curated.ids.index(2)
    assert curated[place][1] == 1
    assert curated[place][0].equal(Cloud(0, 20).samples[2])


def test_workers_of_a_data_loader_give_what_the_process_itself_gives(folder: Path) -> None:
    curated = CuratedDataset(Cloud(0, 20), folder, relabel)
    [alone] = DataLoader(curated, 17)
    # spawned: a fork would take along whatever threads the tests before this one have left, Prefect's among them
    [apart] = DataLoader(curated, 17, num_workers=2, multiprocessing_context="spawn")
    assert all(one.equal(other) for one, other in zip(alone, apart))


def test_another_data_set_is_refused(folder: Path) -> None:
    with pytest.raises(BadInput, match=r"the data set has 21 points, .* was exported of 20; it does not know 20:"):
        CuratedDataset(Cloud(0, 21), folder, relabel)
    text = Cloud(0, 20)
    text.ids = [str(point) for point in text.ids]
    with pytest.raises(BadInput, match=r"it does not know 0, 1, 10:"):
        CuratedDataset(text, folder, relabel)
    for change in ("sample", "label"):
        moved = Cloud(0, 20)
        if change == "sample":
            moved.samples[3] += 1
        else:
            moved.labels[3] = 2 - moved.labels[3]
        with pytest.raises(BadInput, match="samples or labels have changed since"):
            CuratedDataset(moved, folder, relabel)
        assert len(CuratedDataset(moved, folder, relabel, verify=False)) == 17


def test_what_it_needs_and_has_not_got_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"2 points are relabelled: give relabel\(sample, label\) -> sample"):
        CuratedDataset(Cloud(0, 20), folder)
    bare = torch.utils.data.TensorDataset(torch.zeros(20))
    bare.ids = range(20)
    with pytest.raises(BadInput, match="no `labels`"):
        CuratedDataset(bare, folder, relabel)
    (tmp_path / "plain").mkdir()
    assert len(CuratedDataset(Cloud(0, 20), exported(tmp_path / "plain", {}))) == 17


def test_a_trainer_imports_none_of_what_runs_cycles() -> None:
    heavy = ("prefect", "mlflow", "deepspeed", "duckdb", "typer")
    code = f"import sys, flows.curated; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
