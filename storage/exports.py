"""A data set as of a cycle, as a folder of files for other programs.

    kept.parquet        point_id, label: what to train on, with the labels in force, sorted by id
    removed.parquet     point_id, content: what to leave out
    relabeled.parquet   point_id, given, label: what is kept with another label than the given one
    kept.npy            where ids are dense: bit `i` is set if point i is kept, lowest bit of a byte first
    *.txt               on request: the ids of each list, one a line; of relabelings, a tab and the label after each
    export.json         counts, the sha256 of the data set and of every other file; written last

The manifest is read once; memory holds the decisions, two batches of points and the bits.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storage.dataset_digest import DatasetDigest, FirstDigest
from storage.errors import StorageError
from storage.files import atomic_folder, atomic_write_json, read_json, sha256_file
from storage.points import PARQUET, IdKind
from storage.views import Decisions, Part, parts

MASK, SEAL = "kept.npy", "export.json"
SPARSE = 2
"""Ids are dense if they are not negative and below so many times the number of points."""


@dataclass(frozen=True)
class Export:
    """What an export holds.

    Attributes:
        cycle: The data set is that after this cycle.
        dataset_sha256: Of the kept points and the labels in force (`storage.points.dataset_sha256`).
        recorded_by: The cycle that started from it and whose record in the ledger says the same; None for the newest,
            and where the data moved before the next one: then it was what this cycle started from that was checked.
        points: In the manifest: the kept and the removed.
        mask_bits: In kept.npy; None where ids are not dense.
        files: Name to sha256.
    """

    cycle: int
    dataset_sha256: str
    recorded_by: int | None
    id_kind: IdKind
    points: int
    kept: int
    removed: int
    relabeled: int
    mask_bits: int | None
    files: Mapping[str, str]


def write_export(
    out: Path, manifest: Path, decisions: Decisions, cycle: int, recorded: tuple[int, str] | None, *, text: bool
) -> Export:
    """Write the data set that the decisions leave of a manifest.

    Args:
        out: A folder that does not exist.
        manifest: On disk.
        decisions: As of `cycle`.
        cycle: The data set is that after it.
        recorded: The cycle that started from this data set, and its sha256 in the ledger.
        text: Write lists as text, too.

    Raises:
        StorageError: The folder exists, the manifest cannot be read, or the data set is not the recorded one.
    """
    digest = DatasetDigest()
    with atomic_folder(out) as folder:
        with _Lists(folder, manifest, text=text) as lists:
            _stream(manifest, decisions, lambda part: digest.update(part.kept), lists.write)
        _check(digest.hexdigest(), recorded)
        export = Export(
            cycle=cycle,
            dataset_sha256=digest.hexdigest(),
            recorded_by=recorded[0] if recorded else None,
            id_kind=lists.id_kind,
            points=digest.rows + lists.removed.rows,
            kept=digest.rows,
            removed=lists.removed.rows,
            relabeled=lists.relabeled.rows,
            mask_bits=lists.bits,
            files={path.name: sha256_file(path) for path in sorted(folder.iterdir())},
        )
        atomic_write_json(folder / SEAL, asdict(export))
    return export


def check_start(manifest: Path, before: Decisions, recorded: tuple[int, str]) -> None:
    """Check that a manifest is what a cycle started from, also one that an older version opened.

    Args:
        manifest: On disk.
        before: Decisions as of the cycle before.
        recorded: The cycle, and the sha256 of the data set in the ledger.

    Raises:
        StorageError: It is not, or cannot be read.
    """
    found = _digest(manifest, before, DatasetDigest())
    if found != recorded[1] and _digest(manifest, before, FirstDigest()) != recorded[1]:
        _check(found, recorded)


def _digest(manifest: Path, decisions: Decisions, digest: DatasetDigest | FirstDigest) -> str:
    _stream(manifest, decisions, lambda part: digest.update(part.kept))
    return digest.hexdigest()


def _stream(manifest: Path, decisions: Decisions, *takers: Callable[[Part], None]) -> None:
    """Hand every part of a manifest to each taker, in a thread of its own while the next part is read."""
    with ThreadPoolExecutor(len(takers)) as aside:
        taken = list[Future[None]]()
        for part in parts(manifest, decisions):
            _end(taken)
            taken = [aside.submit(take, part) for take in takers]
        _end(taken)


def _end(taken: Sequence[Future[None]]) -> None:
    for one in taken:
        one.result()


def read_export(folder: Path) -> Export:
    """Read what `write_export` sealed, and check every file that it names.

    Raises:
        StorageError: Names the file that is missing or has changed, or the folder that is no export.
    """
    try:
        export = Export(**read_json(folder / SEAL))
    except TypeError as error:
        raise StorageError(f"{folder / SEAL} is not of this version's exports ({error}); export again") from error
    for name, sha256 in export.files.items():
        if not (folder / name).is_file() or sha256_file(folder / name) != sha256:
            raise StorageError(f"{folder / name} is missing or has changed since it was exported; export again")
    return export


class _List:
    """A list as Parquet, and on request as text; a context manager."""

    def __init__(self, path: Path, schema: pa.Schema, shown: Sequence[str]) -> None:
        self.rows = 0
        self._path, self._schema, self._shown, self._open = path, schema, shown, ExitStack()
        self._text: IO[str] | None = None

    def __enter__(self) -> "_List":
        self._table = self._open.enter_context(pq.ParquetWriter(self._path, self._schema, **PARQUET))
        if self._shown:
            self._text = self._open.enter_context(self._path.with_suffix(".txt").open("w", encoding="utf-8"))
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def write(self, points: pa.RecordBatch) -> None:
        """Write the next rows; columns beyond the schema are left out."""
        self.rows += points.num_rows
        self._table.write_batch(points.select(self._schema.names))
        if self._text is not None:
            self._text.writelines(_lines(points, self._shown))


class _Lists:
    """Writes the three lists as their rows come; a context manager, whose end writes the mask."""

    def __init__(self, folder: Path, manifest: Path, *, text: bool) -> None:
        try:
            with pq.ParquetFile(manifest) as file:
                id_type, self.bits = file.schema_arrow.field("point_id").type, _bits(file)
        except (OSError, KeyError, pa.ArrowException) as error:
            raise StorageError(f"cannot read the manifest {manifest}: {error}") from error
        self.id_kind: IdKind = "int" if pa.types.is_integer(id_type) else "string"
        point, label = ("point_id", id_type), ("label", pa.int32())
        ids, labels = (["point_id"] * text, ["point_id", "label"] * text)
        self.kept = _List(folder / "kept.parquet", pa.schema([point, label]), ids)
        self.removed = _List(folder / "removed.parquet", pa.schema([point, ("content", pa.string())]), ids)
        given = pa.schema([point, ("given", pa.int32()), label])
        self.relabeled = _List(folder / "relabeled.parquet", given, labels)
        self._folder, self._open = folder, ExitStack()
        self._mask = np.zeros(-(-(self.bits or 0) // 8), np.uint8)

    def __enter__(self) -> "_Lists":
        for one in (self.kept, self.removed, self.relabeled):
            self._open.enter_context(one)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._open.close()
        if kind is None and self.bits is not None:
            np.save(self._folder / MASK, self._mask)

    def write(self, part: Part) -> None:
        """Write the next points."""
        self.kept.write(part.kept)
        self.removed.write(part.removed)
        self.relabeled.write(part.relabeled)
        if self.bits is not None and part.kept.num_rows:
            self._set(part.kept.column("point_id").to_numpy())

    def _set(self, ids: "np.ndarray[Any, np.dtype[np.int64]]") -> None:
        """Set the bits of ids in ascending order, a byte of the mask for eight of what they span."""
        first, last = int(ids[0]) // 8, int(ids[-1]) // 8
        there = np.zeros(8 * (last - first + 1), np.bool_)
        there[ids - 8 * first] = True
        self._mask[first : last + 1] |= np.packbits(there, bitorder="little")


def _bits(manifest: pq.ParquetFile) -> int | None:
    """How many bits a mask of the ids takes, if they are dense."""
    groups = manifest.metadata.num_row_groups
    if not groups or not pa.types.is_integer(manifest.schema_arrow.field("point_id").type):
        return None
    place = manifest.schema_arrow.get_field_index("point_id")
    first, last = (manifest.metadata.row_group(at).column(place).statistics for at in (0, groups - 1))
    return int(last.max) + 1 if first.min >= 0 and last.max < SPARSE * manifest.metadata.num_rows else None


def _lines(points: pa.RecordBatch, columns: Sequence[str]) -> Iterator[str]:
    for values in zip(*(points.column(name).to_pylist() for name in columns)):
        line = "\t".join(map(str, values))
        if "\n" in line or "\r" in line:
            raise StorageError(f"point {line!r} has an end of line in its id: leave out the lists in text")
        yield f"{line}\n"


def _check(sha256: str, recorded: tuple[int, str] | None) -> None:
    if recorded is not None and recorded[1] != sha256:
        raise StorageError(
            f"the data set is {sha256[:12]}, and cycle {recorded[0]} started from {recorded[1][:12]} by the ledger: "
            "manifest or ledger are not what they were, or of a version with another digest"
        )
