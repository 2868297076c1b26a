"""A torch data set as of a cycle: `CuratedDataset(dataset, folder)` for any trainer, from what `tamis export` wrote."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from torch.utils.data import Dataset

from flows.errors import BadInput
from storage.exports import read_export
from storage.points import dataset_sha256, id_array


class CuratedDataset(Dataset[Any]):
    """The points of a data set that an export keeps, in the order of the data set.

    Args:
        dataset: Map-style, with `ids`; `labels` and `groups` are taken along where there are any.
        folder: What `tamis export` wrote.
        relabel: Gives a sample another label, `relabel(sample, label) -> sample`; needed where points are relabelled.
        verify: Hash every sample, once, and compare with the export's sha256: it takes `labels`, and samples like those
            of the workload. False compares the ids alone.

    Attributes:
        ids: Of the points kept.
        labels: In force; None where the data set has none.
        groups: None where the data set has none.

    Raises:
        BadInput: The data set is not the one that was exported, or `relabel` is missing.
        storage.errors.StorageError: The folder is no export, or was changed.
    """

    def __init__(
        self,
        dataset: Any,
        folder: Path | str,
        relabel: Callable[[Any, int], Any] | None = None,
        *,
        verify: bool = True,
    ) -> None:
        folder = Path(folder)
        export = read_export(folder)
        kept, removed, relabeled = (
            pq.read_table(folder / f"{name}.parquet") for name in ("kept", "removed", "relabeled")
        )
        if export.relabeled and relabel is None:
            raise BadInput(f"{export.relabeled} points are relabelled: give relabel(sample, label) -> sample")
        ids = id_array(_plain(dataset.ids))
        _check_ids(ids, kept["point_id"], removed["point_id"], folder)
        override = dict(zip(relabeled["point_id"].to_pylist(), relabeled["label"].to_pylist()))
        if verify:
            if kept["label"].null_count < len(kept) and not hasattr(dataset, "labels"):
                raise BadInput("the data set has no `labels`, which its sha256 covers: give them, or verify=False")
            _check_content(dataset, removed["point_id"].to_pylist(), override, export.dataset_sha256, folder)
        chosen = pc.is_in(ids, value_set=kept["point_id"].combine_chunks())
        self._dataset, self._relabel = dataset, relabel
        self._rows = np.flatnonzero(chosen.to_numpy(zero_copy_only=False))
        self.ids: list[Any] = ids.filter(chosen).to_pylist()
        self._override = {place: override[point] for place, point in enumerate(self.ids) if point in override}
        self.labels = self._taken("labels")
        self.groups = self._taken("groups")
        if self.labels is not None:
            self.labels = [self._override.get(place, int(label)) for place, label in enumerate(self.labels)]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        place = range(len(self))[index]  # refuses what is outside, as a list does
        sample = self._dataset[int(self._rows[place])]
        if self._relabel is None or place not in self._override:
            return sample
        return self._relabel(sample, self._override[place])

    def _taken(self, name: str) -> list[Any] | None:
        values = getattr(self._dataset, name, None)
        return None if values is None else [values[row] for row in self._rows.tolist()]


def _plain(ids: Sequence[Any]) -> list[Any]:
    """Ids of numpy or torch as Python has them."""
    return [point.item() if hasattr(point, "item") else point for point in ids]


def _check_ids(ids: pa.Array, kept: pa.ChunkedArray, removed: pa.ChunkedArray, folder: Path) -> None:
    known = pa.chunked_array([*kept.chunks, *removed.chunks], kept.type)
    if ids.type == known.type and len(ids) == len(known) and ids.sort().equals(known.combine_chunks().sort()):
        return
    strange = sorted(set(ids.to_pylist()) - set(known.to_pylist()), key=str)[:3]
    raise BadInput(
        f"the data set has {len(ids):,} points, {folder} was exported of {len(known):,}"
        + (f"; it does not know {', '.join(map(str, strange))}" if strange else "")
        + ": give the data set of the export, or export again"
    )


def _check_content(dataset: Any, removed: list[Any], relabeled: dict[Any, int], expected: str, folder: Path) -> None:
    from flows.dataset import manifest_of  # what reads samples is needed for this alone

    found = dataset_sha256(manifest_of("train", dataset), removed, relabeled)
    if found != expected:
        raise BadInput(
            f"the data set hashes to {found[:12]}, {folder} was exported of {expected[:12]}: samples or labels have "
            "changed since; give those of the export, or export again"
        )
