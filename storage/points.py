"""The manifest of a data set: which points there are and what they hold.

One row per point, sorted by `point_id` (integers by value, strings by code point; DuckDB, Arrow and Python agree):

    point_id  int64 | string   stable name given by the workload, unique
    content   string           sha256 of the sample with its label: the same id with new content is a new point
    inputs    string           sha256 of the sample without its label: two sets that share one leak
    label     int32, nullable  the given label
    group     string, nullable

The ledger keeps ids as text; `id_text` and `id_from_text` are the only place where the two meet.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage.dataset_digest import DatasetDigest
from storage.errors import DuplicatePoint, MixedPointIds, OverlappingSets, StorageError, UnknownPoint
from storage.files import atomic_path

PointId: TypeAlias = int | str
IdKind: TypeAlias = Literal["int", "string"]

SHOWN = 5
NO_LABELS: Mapping[PointId, int] = MappingProxyType({})
PARQUET: Mapping[str, Any] = {"compression": "zstd", "use_dictionary": ["label", "group"]}
"""How a manifest is written: hashes do not repeat, so a dictionary of them would cost and not save."""
ROWS = 2**16
"""Of a batch."""


def id_text(point: PointId) -> str:
    """The canonical text of a point id, as the ledger keeps it."""
    return str(point)


def id_from_text(text: str, kind: IdKind) -> PointId:
    """The point id that `id_text` wrote.

    Raises:
        UnknownPoint: `kind` is "int" and the text is not an integer.
    """
    if kind == "string":
        return text
    try:
        return int(text)
    except ValueError as error:
        raise UnknownPoint(f"point {text!r} is unknown: the ids of this data set are integers") from error


def id_array(ids: Iterable[PointId]) -> pa.Array:
    """Ids as an int64 or string array.

    Raises:
        MixedPointIds: they are not all integers or all strings, or pass 64 bits.
    """
    values = list(ids)
    integers = sum(isinstance(value, int | np.integer) and not isinstance(value, bool) for value in values)
    strings = sum(isinstance(value, str) for value in values)
    if integers == len(values):
        try:
            return pa.array([int(value) for value in values], pa.int64())
        except (OverflowError, pa.ArrowInvalid) as error:
            raise MixedPointIds("an integer point id does not fit 64 signed bits; use strings instead") from error
    if strings == len(values):
        return pa.array(values, pa.string())
    other = next(v for v in values if not isinstance(v, str if strings >= integers else int) or isinstance(v, bool))
    raise MixedPointIds(
        f"point ids must be all integers or all strings; got {integers} integers and {strings} strings "
        f"among {len(values)}, e.g. {other!r} ({type(other).__name__})"
    )


def require_unique(ids: pa.Array | pa.ChunkedArray, where: str) -> None:
    """Check that no id occurs twice.

    Raises:
        DuplicatePoint: names how many do, and the first of them.
    """
    counts = pc.value_counts(ids)
    twice = counts.filter(pc.greater(counts.field("counts"), 1)).field("values").to_pylist()
    if twice:
        raise DuplicatePoint(
            f"{len(twice)} point ids occur more than once in {where}: {_some(sorted(twice))}; ids must be unique"
        )


def _some(values: list[Any]) -> str:
    shown = ", ".join(str(value) for value in values[:SHOWN])
    return shown + (", …" if len(values) > SHOWN else "")


@dataclass(frozen=True)
class Manifest:
    """The points of one data set; the columns of `table` are those of the module docstring."""

    table: pa.Table

    @classmethod
    def build(
        cls,
        ids: Iterable[PointId],
        content: Iterable[str],
        inputs: Iterable[str],
        labels: Iterable[int | None] | None = None,
        groups: Iterable[str | None] | None = None,
    ) -> "Manifest":
        """Build from columns in any order of points.

        Args:
            ids: Unique ids.
            content: sha256 of each sample with its label, in hex.
            inputs: sha256 of each sample without its label, in hex.
            labels: Given class of each point, or None where there is none.
            groups: Named group of each point, or None where there is none.

        Raises:
            DuplicatePoint: an id occurs twice.
            MixedPointIds: integers and strings are mixed.
            StorageError: the columns differ in length.
        """
        point_id = id_array(ids)
        columns = {
            "point_id": point_id,
            "content": pa.array(list(content), pa.string()),
            "inputs": pa.array(list(inputs), pa.string()),
            "label": pa.nulls(len(point_id), pa.int32()) if labels is None else _labels(labels),
            "group": pa.nulls(len(point_id), pa.string()) if groups is None else pa.array(list(groups), pa.string()),
        }
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) > 1:
            raise StorageError(f"the columns of a data set differ in length: {lengths}; give one value per point")
        require_unique(point_id, "the data set")
        return cls(pa.table(columns).sort_by("point_id"))

    @property
    def id_kind(self) -> IdKind:
        """Whether the ids of this data set are integers or strings."""
        return "int" if pa.types.is_integer(self.table.schema.field("point_id").type) else "string"

    @cached_property
    def ids(self) -> list[PointId]:
        """The ids in manifest order."""
        ids: list[PointId] = self.table["point_id"].to_pylist()
        return ids

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def without(self, removed: Collection[PointId]) -> "Manifest":
        """This manifest minus `removed`; ids that are not in it are ignored."""
        if not removed:
            return self
        gone = pa.array(list(removed), self.table.schema.field("point_id").type)
        return Manifest(self.table.filter(pc.invert(pc.is_in(self.table["point_id"], value_set=gone))))

    def view(self, removed: Collection[PointId], relabeled: Mapping[PointId, int] = NO_LABELS) -> "Manifest":
        """The data set in force: this manifest minus `removed`, with other labels for some points.

        `content` stays that of the sample as it is given. Ids that are not in the manifest are ignored.
        """
        kept = self.without(removed).table
        if not relabeled:
            return Manifest(kept)
        kind = kept.schema.field("point_id").type
        place = pc.index_in(kept["point_id"], value_set=pa.array(list(relabeled), kind))
        label = pc.coalesce(_labels(relabeled.values()).take(place), kept["label"])
        return Manifest(kept.set_column(kept.schema.get_field_index("label"), "label", label))

    def write(self, path: Path) -> None:
        """Write as Parquet, whole or not at all."""
        with atomic_path(path) as temporary:
            pq.write_table(self.table, temporary, **PARQUET)

    @classmethod
    def read(cls, path: Path) -> "Manifest":
        """Read what `write` wrote.

        Raises:
            StorageError: the file is missing or not a manifest.
        """
        try:
            return cls(pq.read_table(path, columns=["point_id", "content", "inputs", "label", "group"]))
        except (OSError, pa.ArrowException) as error:
            raise StorageError(f"cannot read the manifest {path}: {error}") from error


def _labels(labels: Iterable[int | None]) -> pa.Array:
    values = [None if label is None else int(label) for label in labels]
    try:
        return pa.array(values, pa.int32())
    except (OverflowError, pa.ArrowInvalid) as error:
        raise StorageError("a label does not fit 32 signed bits; give class numbers") from error


def dataset_sha256(
    manifest: Manifest, removed: Collection[PointId] = (), relabeled: Mapping[PointId, int] = NO_LABELS
) -> str:
    """Identity of the data set in force (see `storage.dataset_digest`)."""
    digest = DatasetDigest()
    for batch in manifest.view(removed, relabeled).table.to_batches(ROWS):
        digest.update(batch)
    return digest.hexdigest()


def check_disjoint(train: Manifest, query: Manifest, holdout: Manifest) -> None:
    """Check that no sample stands in two sets, whatever its id and label there (no leakage).

    Raises:
        OverlappingSets: names the two sets, how many samples they share and the first ids.
    """
    sets = {"train": train, "query": query, "holdout": holdout}
    for (first, a), (second, b) in combinations(sets.items(), 2):
        shared = a.table.filter(pc.is_in(a.table["inputs"], value_set=pc.unique(b.table["inputs"])))
        if shared.num_rows:
            raise OverlappingSets(
                f"{shared.num_rows} samples of the {first} set are also in the {second} set, "
                f"{first} ids {_some(shared['point_id'].to_pylist())}; the three sets must be disjoint by content"
            )
