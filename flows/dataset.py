"""The three sets of a workload as manifests: who is in them, told apart by content.

`content` hashes the whole sample with its given label, so that a corrected label is a new point. `inputs` leaves out
the leaves that repeat the label, so that an image is found in two sets even where its label differs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from flows.asking import labels_of
from flows.errors import BadInput
from flows.workload import PointSet, Workload
from storage.errors import StorageError
from storage.files import sha256_json, sha256_parts
from storage.points import Manifest, check_disjoint


@dataclass(frozen=True)
class DataSets:
    """The manifests of the three sets, checked to be disjoint by content."""

    train: Manifest
    query: Manifest
    holdout: Manifest

    @property
    def digests(self) -> Mapping[str, str]:
        """A sha256 of each set as the workload gives it now."""
        return {"train": digest(self.train), "query": digest(self.query), "holdout": digest(self.holdout)}


def digest(manifest: Manifest) -> str:
    """A sha256 of who is in a set and what each point holds."""
    return sha256_json([manifest.table["point_id"].to_pylist(), manifest.table["content"].to_pylist()])


def check_unchanged(manifest: Manifest, expected: str) -> None:
    """Refuse a train set that reads differently from what the cycle was opened on.

    Raises:
        BadInput: It changed, or its samples are drawn anew at every reading.
    """
    if digest(manifest) != expected:
        raise BadInput(
            "the train set reads differently than when the cycle was opened: a sample must be the same at every "
            "reading (augment in loss or logits); if the data have moved, run again"
        )


def read_sets(workload: Workload) -> DataSets:
    """Hash every sample of the three sets.

    Raises:
        BadInput: A set is empty or its ids, labels and samples differ in number.
        storage.errors.StorageError: Duplicate ids, ids of mixed type, or sets that overlap by content.
    """
    sets = DataSets(
        train=manifest_of("train", workload.points()),
        query=manifest_of("query", workload.queries()),
        holdout=manifest_of("holdout", workload.holdout()),
    )
    check_disjoint(sets.train, sets.query, sets.holdout)
    return sets


def manifest_of(name: str, points: PointSet) -> Manifest:
    """The manifest of one set, whose `name` an error carries."""
    labels = labels_of(points)
    counts = {"ids": len(points.ids)} | ({} if labels is None else {"labels": len(labels)}) | {"samples": len(points)}
    if len(set(counts.values())) > 1 or not counts["ids"]:
        raise BadInput(f"the {name} set has {counts}: give one id and one label per sample, and at least one sample")
    given = [None] * len(points) if labels is None else [int(label) for label in labels]
    hashes = [_hash(points[row], given[row]) for row in range(len(points))]
    groups = getattr(points, "groups", None)
    try:
        return Manifest.build(
            ids=[id_.item() if isinstance(id_, Tensor | np.generic) else id_ for id_ in points.ids],
            content=[whole for whole, _ in hashes],
            inputs=[inputs for _, inputs in hashes],
            labels=given,
            groups=None if groups is None else [None if group is None else str(group) for group in groups],
        )
    except StorageError as error:
        raise type(error)(f"the {name} set: {error}") from error


def rows_by_id(points: PointSet, manifest: Manifest) -> Tensor:
    """Where each id of the manifest, in its order, stands in the data set: `[n]`."""
    row = {id_.item() if isinstance(id_, Tensor | np.generic) else id_: at for at, id_ in enumerate(points.ids)}
    return torch.tensor([row[point] for point in manifest.ids], dtype=torch.int64)


def _hash(sample: Any, label: int | None) -> tuple[str, str]:
    leaves, structure = tree_flatten(sample)
    whole = [part for leaf in leaves for part in _parts(leaf)]
    inputs = [part for leaf in leaves if not _is_label(leaf, label) for part in _parts(leaf)]
    head = str(structure).encode()
    return sha256_parts([head, str(label).encode(), *whole]), sha256_parts(inputs)


def _is_label(leaf: Any, label: int | None) -> bool:
    scalar = isinstance(leaf, int | np.integer) or (isinstance(leaf, Tensor | np.ndarray) and leaf.ndim == 0)
    return label is not None and scalar and leaf == label


def _parts(leaf: Any) -> Iterator[bytes]:
    if isinstance(leaf, Tensor):
        leaf = leaf.detach().cpu().contiguous()
        if leaf.dtype == torch.bfloat16:
            leaf = leaf.view(torch.int16)
        leaf = leaf.numpy()
    if isinstance(leaf, np.ndarray | np.generic):
        array = np.asarray(leaf)
        yield f"{array.dtype.str}{array.shape}".encode()
        yield np.ascontiguousarray(array).tobytes()
    elif isinstance(leaf, bytes):
        yield leaf
    elif isinstance(leaf, str | int | float | bool | None):
        yield repr(leaf).encode()
    else:
        raise BadInput(
            f"a sample holds a {type(leaf).__name__}: tensors, arrays, numbers, text and bytes can be hashed"
        )
