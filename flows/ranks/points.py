"""One set of a workload in manifest order: batches by place, labels, and who is in training."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flows.dataset import manifest_of, rows_by_id
from flows.errors import BadInput
from flows.ranks.device import CPU, moved
from flows.relabeling import GIVEN, LabelWriter, Relabeled, Source
from flows.workload import Batches, PointSet, Workload, collate_of
from influence.errors import NotFinite
from storage.copies import originals
from storage.points import NO_LABELS, Manifest, PointId


class Points:
    """A set whose points are addressed by their place in the manifest.

    Args:
        name: `train` or `query`.
        points: The set.
        workload: Collates its samples.
        removed: Ids that are not trained on.
        relabeled: Labels that are in force in place of the given ones.
        device: Where batches are taken to; all else is on the CPU.

    Attributes:
        labels: In force, -1 for none `[n]`.
        groups: A number for each group, -1 for none `[n]`.
        in_train: Whether each point is trained on `[n]`, bool.
        in_force: Batches by row, with the labels in force, on the device.
        rows: Row of each place in the data set `[n]`.
        keys: One integer per point, of its id alone: the seed of what is drawn for it `[n]`, int64.
    """

    def __init__(
        self,
        name: str,
        points: PointSet,
        workload: Workload,
        removed: Collection[PointId] = frozenset(),
        relabeled: Mapping[PointId, int] = NO_LABELS,
        device: torch.device = CPU,
    ) -> None:
        self._name, self._workload, self.device = name, workload, device
        self.manifest: Manifest = manifest_of(name, points)
        self.ids: list[PointId] = self.manifest.ids
        self.rows = rows_by_id(points, self.manifest)
        self.labels = _labels(self.manifest, relabeled)
        groups = self.manifest.table["group"].combine_chunks().dictionary_encode().indices.fill_null(-1)
        self.groups = torch.tensor(groups.to_pylist(), dtype=torch.int64)
        self.in_train = torch.tensor([point not in removed for point in self.ids])
        self.keys = torch.tensor([_key(point) for point in self.ids], dtype=torch.int64)
        self.batches = Batches(points, collate_of(workload))
        self.in_force = self.with_labels(relabeled)

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, places: range | Tensor) -> Any:
        """The batch of the points at these places, on the device."""
        return self.in_force.take(self.rows[torch.as_tensor(places)])

    def originals(self) -> Tensor:
        """Place of the point in training that each point is an exact copy of, -1 for none `[n]`."""
        return torch.from_numpy(originals(self.manifest, self.labels.numpy(), self.in_train.numpy()))

    def seen(self, removed: Collection[PointId], relabeled: Mapping[PointId, int]) -> Points:
        """The same set as another training sees it: without other points, and with other labels in force."""
        other = copy.copy(self)
        other.in_train = torch.tensor([point not in removed for point in self.ids])
        other.labels = _labels(self.manifest, relabeled)
        other.in_force = self.with_labels(relabeled)
        return other

    def with_labels(self, relabeled: Mapping[PointId, int]) -> Source:
        """Batches by row, on the device, with these labels in place of the given ones; ids not in the set are ignored.

        Raises:
            BadInput: Labels cannot be put into the workload's batches.
        """
        labels = torch.full((len(self),), GIVEN)
        for row, point in zip(self.rows.tolist(), self.ids):
            labels[row] = relabeled.get(point, GIVEN)
        if bool((labels == GIVEN).all()):
            return _There(self.batches, self.device)
        writer = LabelWriter(self._workload, self.batches, len(self))
        return _There(Relabeled(self.batches, writer, labels), self.device)

    @contextmanager
    def named(self, places: range | Tensor) -> Iterator[None]:
        """Give a value that is not finite the id of its point, where the batch was taken from these places."""
        try:
            yield
        except NotFinite as error:
            raise BadInput(f"{self._name} point {self.ids[int(places[error.row])]}: {error}") from error


@dataclass(frozen=True)
class _There:
    """Batches of another source, on a device."""

    source: Source
    device: torch.device

    def take(self, rows: Tensor) -> Any:
        """The batch of the given rows, in their order."""
        return moved(self.source.take(rows), self.device)


def _labels(manifest: Manifest, relabeled: Mapping[PointId, int]) -> Tensor:
    labels = manifest.view((), relabeled).table["label"].combine_chunks()
    return torch.tensor(labels.fill_null(-1).to_pylist(), dtype=torch.int64)


def _key(point: PointId) -> int:
    return int.from_bytes(hashlib.sha256(str(point).encode()).digest()[:8], "little", signed=True)
