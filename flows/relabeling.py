"""Labels in force: batches in which some points carry another label than the one that the data set gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from flows.errors import BadInput
from flows.workload import Batches, PointSet, Workload, collate_of
from influence.objective import check_cross_entropy
from storage.files import atomic_path
from storage.points import Manifest, PointId

PROBE = 64
"""Points that are tried, at most."""
GIVEN = -1
"""In place of a label: the given one is in force."""


class Source(Protocol):
    """Batches by row."""

    def take(self, rows: Tensor) -> Any:
        """The batch of the given rows, in their order."""
        ...


class LabelWriter:
    """Puts labels into batches: by the workload's own `with_labels`, or into the leaf of the batch that holds them.

    Args:
        workload: Says what the labels of a batch are.
        batches: Of the train set, some of whose rows are tried.
        count: Rows in the set.

    Raises:
        BadInput: Neither is possible.
    """

    def __init__(self, workload: Workload, batches: Batches, count: int) -> None:
        self._workload = workload
        self._own: Callable[[Any, Tensor], Any] | None = getattr(workload, "with_labels", None)
        probe = batches.take(torch.arange(0, count, max(1, count // PROBE)))
        if self._own is None:
            self._leaf = _label_leaf(probe, workload.labels(probe))
        self.turned = self.override(probe, workload.labels(probe).flip(0))

    def override(self, batch: Any, labels: Tensor) -> Any:
        """The batch with these labels `[B]` where they are not GIVEN; the one that is given stays as it is."""
        given = self._workload.labels(batch)
        labels = torch.where(labels == GIVEN, given, labels.to(given.dtype))
        written = self._replaced(batch, labels) if self._own is None else self._own(batch, labels)
        if not self._workload.labels(written).equal(labels):
            raise BadInput("with_labels(batch, labels) gives a batch of which labels(batch) are not these labels")
        return written

    def _replaced(self, batch: Any, labels: Tensor) -> Any:
        leaves, structure = tree_flatten(batch)
        leaves[self._leaf] = labels.to(leaves[self._leaf].dtype)
        return tree_unflatten(leaves, structure)


def _label_leaf(batch: Any, labels: Tensor) -> int:
    found = [
        place
        for place, leaf in enumerate(tree_flatten(batch)[0])
        if isinstance(leaf, Tensor) and not leaf.is_floating_point() and leaf.shape == labels.shape
        if bool((leaf == labels).all())
    ]
    if len(found) != 1:
        raise BadInput(
            f"{len(found) or 'no'} integer tensors of a batch are its labels, it takes one to relabel points: give the "
            'workload a method with_labels(batch, labels) -> batch, or set pruning.mislabeled_action = "remove"'
        )
    return found[0]


def check_relabeling(workload: Workload, model: nn.Module, points: PointSet) -> None:
    """Try labels other than the given ones on some points.

    Args:
        workload: Whose labels and loss are to follow.
        model: Any of the workload's.
        points: The train set.

    Raises:
        BadInput: They cannot be put into a batch.
        influence.errors.InfluenceError: The loss does not follow them.
    """
    turned = LabelWriter(workload, Batches(points, collate_of(workload)), len(points)).turned
    with torch.no_grad():
        losses, logits = workload.loss(model, turned), workload.logits(model, turned)
    check_cross_entropy(losses, logits, workload.labels(turned))


class Relabeled:
    """Batches of which some points carry another label.

    Args:
        batches: With the given labels.
        writer: Puts labels into them.
        labels: By row, the label in force, or GIVEN `[n]`.
    """

    def __init__(self, batches: Batches, writer: LabelWriter, labels: Tensor) -> None:
        self._batches, self._writer, self._labels = batches, writer, labels

    def take(self, rows: Tensor) -> Any:
        """The batch of the given rows, in their order."""
        batch, labels = self._batches.take(rows), self._labels[rows]
        return batch if bool((labels == GIVEN).all()) else self._writer.override(batch, labels)


def write_labels(path: Path, labels: Mapping[PointId, int], manifest: Manifest) -> Path:
    """Write the labels that override the given ones, `point_id, label`, with ids of the manifest's type."""
    kind = manifest.table.schema.field("point_id").type
    rows = sorted(labels.items())
    table = pa.table(
        {"point_id": pa.array([i for i, _ in rows], kind), "label": pa.array([j for _, j in rows], pa.int32())}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as draft:
        pq.write_table(table, draft)
    return path


def read_labels(path: Path | None) -> dict[PointId, int]:
    """What `write_labels` wrote; none without a file."""
    if path is None:
        return {}
    table = pq.read_table(path)
    return dict(zip(table["point_id"].to_pylist(), table["label"].to_pylist()))
