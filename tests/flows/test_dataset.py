from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from flows.dataset import manifest_of, read_sets, rows_by_id
from flows.errors import BadInput
from storage.errors import DuplicatePoint, OverlappingSets
from storage.points import Manifest, PointId, dataset_sha256
from tests.flows.blobs import Blobs


class Listed:
    def __init__(self, samples: Sequence[Any], labels: Sequence[Any], ids: Sequence[Any] | None = None) -> None:
        self.samples, self.labels = samples, labels
        self.ids: Sequence[Any] = range(len(samples)) if ids is None else ids

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        return self.samples[index]


def hashes(sample: Any, label: int) -> tuple[str, str]:
    manifest = manifest_of("train", Listed([sample], [label]))
    return manifest.table["content"][0].as_py(), manifest.table["inputs"][0].as_py()


@pytest.mark.parametrize("label", [int, np.int64, torch.tensor, np.asarray])
def test_a_corrected_label_is_new_content_of_the_same_inputs(label: Any) -> None:
    image = torch.arange(4.0)
    before, after = hashes((image, label(1)), 1), hashes((image, label(2)), 2)
    assert before[0] != after[0]
    assert before[1] == after[1]


def test_another_value_shape_or_type_is_another_input() -> None:
    image = torch.arange(4.0)
    others = [image + 1e-7, image.view(2, 2), image.double(), image.numpy().tobytes(), "text"]
    assert len({hashes((other, 0), 0) for other in [image, *others]}) == 6


def test_a_strided_view_hashes_like_its_copy() -> None:
    grid = torch.arange(6.0).view(2, 3).T
    assert hashes((grid, 0), 0) == hashes((grid.contiguous(), 0), 0)
    assert hashes((grid.bfloat16(), 0), 0) == hashes((grid.bfloat16().contiguous(), 0), 0)


def test_what_cannot_be_hashed_is_refused_by_its_type() -> None:
    with pytest.raises(BadInput, match="a sample holds a object: tensors"):
        hashes((object(), 0), 0)


@pytest.mark.parametrize(
    "ids",
    [
        np.array([7, 3, 5]),
        list(np.array([7, 3, 5])),
        torch.tensor([7, 3, 5]),
        [torch.tensor(7), torch.tensor(3), torch.tensor(5)],
    ],
)
def test_ids_of_numpy_and_torch_scalars_are_plain_numbers(ids: Any) -> None:
    points = Listed(torch.arange(3.0), [0, 1, 0], ids)
    manifest = manifest_of("train", points)
    assert manifest.ids == [3, 5, 7]
    assert manifest.table["label"].to_pylist() == [1, 0, 0]
    assert rows_by_id(points, manifest).tolist() == [1, 2, 0]


def test_strings_of_numpy_are_ids_too() -> None:
    assert manifest_of("train", Listed(torch.arange(2.0), [0, 1], np.array(["b", "a"]))).ids == ["a", "b"]


@pytest.mark.parametrize("ids", [[1, 1], [torch.tensor(1), 1], ["x", "x"]])
def test_an_id_given_twice_is_named(ids: Any) -> None:
    with pytest.raises(DuplicatePoint, match=f"the train set: .*{ids[-1]}"):
        manifest_of("train", Listed(torch.arange(2.0), [0, 1], ids))


@pytest.mark.parametrize(("ids", "labels"), [([1], [0, 1]), ([1, 2], [0])])
def test_ids_labels_and_samples_that_differ_in_number_are_counted(ids: list[int], labels: list[int]) -> None:
    with pytest.raises(BadInput, match=r"the query set has .*'ids': \d, 'labels': \d, 'samples': 2"):
        manifest_of("query", Listed(torch.arange(2.0), labels, ids))


def test_an_empty_set_is_refused() -> None:
    with pytest.raises(BadInput, match="at least one sample"):
        manifest_of("holdout", Listed([], []))


def test_sets_that_share_an_input_overlap_whatever_its_labels() -> None:
    workload = Blobs(fault="overlap")  # query 0 is train point 0 with another label
    assert workload.points().labels[0] != workload.queries().labels[0]
    with pytest.raises(OverlappingSets, match=r"train.*query"):
        read_sets(workload)


def test_the_digest_of_a_set_follows_its_content_and_not_its_order() -> None:
    samples, labels, ids = torch.arange(3.0), [0, 1, 2], ["a", "b", "c"]
    one = manifest_of("train", Listed(samples, labels, ids))
    other = manifest_of("train", Listed(samples.flip(0), labels[::-1], ids[::-1]))
    moved = manifest_of("train", Listed(samples + 1, labels, ids))
    removed: list[PointId] = ["b"]

    def digest(manifest: Manifest) -> str:
        return dataset_sha256(manifest, removed)

    assert digest(one) == digest(other)
    assert digest(one) != digest(moved)
