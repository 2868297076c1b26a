"""Score shards: one Parquet file per chunk of points, written whole, resumed by chunk, sealed by a manifest.

    <cycle>/scores/part-r000-c00012.parquet    chunk 12, computed by rank 0
                  /MANIFEST.json               sha256 and rows of every shard, written when all are there
                  /unfinished/                 parts that the shards are made of, until then (storage/parts.py)

Every shard carries its `ScoreMetadata` with the sign and the unit as Parquet key-value pairs (each value JSON, each key
prefixed `tamis.`). Columns: `REQUIRED` are there and never null; any other column may be null where a number does not
exist, but no number is ever NaN or infinite. `scores_sha256` is the hash of the shards' hashes.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage.errors import ScoresDamaged, ScoresInvalid, StorageError
from storage.files import (
    JSON,
    TEMPORARY,
    atomic_path,
    atomic_write_json,
    canonical_json,
    read_json,
    sha256_file,
    sha256_json,
)
from storage.parts import Parts
from storage.points import require_unique

SIGN = "positive = helpful: predicted rise of the query loss if the point is removed; negative = harmful"
UNIT = "nats"
REQUIRED = ("point_id", "cycle", "in_train", "loss", "influence", "influence_se", "self_influence")
MANIFEST = "MANIFEST.json"
SHARD = re.compile(r"part-r(\d{3,})-c(\d{5,})\.parquet")
PREFIX = "tamis."


@dataclass(frozen=True)
class ScoreMetadata:
    """How scores were made.

    Args:
        cycle: The cycle they belong to.
        estimator: E.g. "ekfac".
        blocks: Names of the selected blocks.
        damping: Kind, value and resolved number.
        checkpoint_digest: Digest of the checkpoint they were computed on.
        inputs_digest: sha256 of everything they depend on; a shard of other inputs is never reused.
        extra: Anything else worth keeping.
    """

    cycle: int
    estimator: str
    blocks: Sequence[str]
    damping: JSON
    checkpoint_digest: str
    inputs_digest: str
    extra: Mapping[str, JSON] = field(default_factory=dict)


@dataclass(frozen=True)
class ScoreSet:
    """Finished scores; `sha256` is the `scores_sha256` of a proposal."""

    folder: Path
    sha256: str
    rows: int
    shards: tuple[Path, ...]
    metadata: ScoreMetadata


def _pack(made: Mapping[str, JSON]) -> dict[str, str]:
    values: dict[str, JSON] = {**made, "sign": SIGN, "unit": UNIT}
    return {PREFIX + key: canonical_json(value) for key, value in values.items()}


def _metadata(shard: Path) -> ScoreMetadata:
    pairs = pq.read_schema(shard).metadata or {}
    try:
        return ScoreMetadata(**{f.name: json.loads(pairs[(PREFIX + f.name).encode()]) for f in fields(ScoreMetadata)})
    except KeyError as error:
        raise ScoresDamaged(f"{shard} carries no {error}; delete the folder and score again") from error


def _chunk(shard: Path) -> int:
    return int(SHARD.sub(r"\2", shard.name))


def shards(folder: Path) -> tuple[Path, ...]:
    """The shards in a folder, by chunk and then rank."""
    found = folder.iterdir() if folder.is_dir() else ()
    return tuple(sorted((p for p in found if SHARD.fullmatch(p.name)), key=lambda p: (_chunk(p), p.name)))


def check_columns(table: pa.Table, required: Sequence[str] = REQUIRED) -> None:
    """Check a score table against the contract of the module docstring.

    Raises:
        ScoresInvalid: names the column and the first points.
    """
    missing = [name for name in required if name not in table.column_names]
    if missing:
        raise ScoresInvalid(f"a score table lacks {', '.join(missing)}; required are {', '.join(required)}")
    for name in table.column_names:
        column = table[name]
        if name in required and column.null_count:
            _refuse(table, name, pc.is_null(column), "null")
        if pa.types.is_floating(column.type):
            _refuse(table, name, pc.invert(pc.fill_null(pc.is_finite(column), True)), "not finite")


def _refuse(table: pa.Table, name: str, bad: pa.ChunkedArray, what: str) -> None:
    points = table["point_id"].filter(bad).to_pylist()
    if points:
        first = ", ".join(map(str, points[:5]))
        raise ScoresInvalid(f"score column {name} is {what} for {len(points)} points: {first}; scores must be numbers")


def write_chunk(folder: Path, rank: int, chunk: int, table: pa.Table, metadata: ScoreMetadata) -> Path:
    """Write the scores of one chunk, whole or not at all.

    Args:
        folder: `<cycle>/scores`.
        rank: The rank that computed the chunk.
        chunk: Index in the content grid.
        table: One row per point; see the module docstring.
        metadata: The same for every chunk of a folder.

    Raises:
        ScoresInvalid: a column is missing, null or not finite.
        DuplicatePoint: a point occurs twice.
        WriteFailed: the system refused the write.
    """
    check_columns(table)
    require_unique(table["point_id"], f"score chunk {chunk}")
    path = folder / f"part-r{rank:03d}-c{chunk:05d}.parquet"
    _write(path, table, asdict(metadata))
    return path


def write_file(path: Path, table: pa.Table, made: Mapping[str, JSON]) -> None:
    """Write scores that belong to no cycle as one file, whole or not at all.

    Args:
        path: The Parquet file.
        table: One row per point, as in a shard but for the column `cycle`.
        made: How, as key-value pairs beside the sign and the unit.

    Raises:
        ScoresInvalid: a column is missing, null or not finite.
        DuplicatePoint: a point occurs twice.
        WriteFailed: the system refused the write.
    """
    check_columns(table, [name for name in REQUIRED if name != "cycle"])
    require_unique(table["point_id"], str(path))
    _write(path, table, made)


def _write(path: Path, table: pa.Table, made: Mapping[str, JSON]) -> None:
    with atomic_path(path) as temporary:
        pq.write_table(table.replace_schema_metadata(_pack(made)), temporary, compression="zstd")


def parts(folder: Path, inputs_digest: str) -> Parts:
    """What is already known of scores that are not finished."""
    return Parts(folder / "unfinished", inputs_digest)


def sweep(folder: Path, inputs_digest: str) -> tuple[Path, ...]:
    """Delete temporaries and shards of other inputs; for one process, before ranks start.

    Returns:
        The files that were deleted.
    """
    stale = [path for path in shards(folder) if _metadata(path).inputs_digest != inputs_digest]
    torn = [path for path in folder.glob(f".*{TEMPORARY}") if path.is_file()]
    if stale and (folder / MANIFEST).exists():
        stale.insert(0, folder / MANIFEST)
    for path in stale + torn:
        path.unlink()
    return tuple(stale + torn)


def discard(folder: Path) -> None:
    """Delete all shards, before ranks that may be others than those that wrote them write all of them."""
    for path in (folder / MANIFEST, *shards(folder)):
        path.unlink(missing_ok=True)


def missing_chunks(folder: Path, n_chunks: int, inputs_digest: str) -> tuple[int, ...]:
    """The chunks of 0…n_chunks-1 that have no shard computed from these inputs."""
    there = {_chunk(path) for path in shards(folder) if _metadata(path).inputs_digest == inputs_digest}
    return tuple(chunk for chunk in range(n_chunks) if chunk not in there)


def finish(folder: Path, n_chunks: int) -> ScoreSet:
    """Check that the shards are complete and consistent, and seal them with a MANIFEST.json.

    Raises:
        ScoresInvalid: chunks are missing, present twice or made from different inputs or columns.
        DuplicatePoint: a point stands in two shards.
    """
    files = shards(folder)
    chunks = [_chunk(path) for path in files]
    if not chunks or chunks != list(range(n_chunks)):
        missing, twice = sorted(set(range(n_chunks)) - set(chunks)), sorted({c for c in chunks if chunks.count(c) > 1})
        raise ScoresInvalid(
            f"{folder}: chunks 0 to {n_chunks - 1} are expected once each; missing {missing[:5]}, twice {twice[:5]}, "
            f"{len(chunks)} in all; score again"
        )
    metadata = {canonical_json(asdict(_metadata(path))) for path in files}
    schemas = {pq.read_schema(path).remove_metadata().to_string() for path in files}
    if len(metadata) > 1 or len(schemas) > 1:
        raise ScoresInvalid(f"{folder}: shards differ in their inputs or columns; delete the folder and score again")
    require_unique(pa.chunked_array([c for p in files for c in _column(p, "point_id").chunks]), "the score shards")
    entries: dict[str, JSON] = {
        path.name: {"sha256": sha256_file(path), "rows": pq.read_metadata(path).num_rows} for path in files
    }
    atomic_write_json(folder / MANIFEST, {"shards": entries, "scores_sha256": sha256_json(entries)})
    return _score_set(folder, entries)


def _column(shard: Path, name: str) -> pa.ChunkedArray:
    return pq.read_table(shard, columns=[name])[name]


def _score_set(folder: Path, entries: Mapping[str, JSON]) -> ScoreSet:
    files = shards(folder)
    rows = sum(pq.read_metadata(path).num_rows for path in files)
    return ScoreSet(folder, sha256_json(entries), rows, files, _metadata(files[0]))


def load(folder: Path) -> ScoreSet | None:
    """Open finished scores, every byte checked; None when they are not finished.

    Raises:
        ScoresDamaged: a shard is missing, was added or has changed.
    """
    if not (folder / MANIFEST).is_file():
        return None
    entries = read_json(folder / MANIFEST)["shards"]
    found = {path.name: path for path in shards(folder)}
    odd = set(found) ^ set(entries)
    odd |= {name for name in set(found) - odd if sha256_file(found[name]) != entries[name]["sha256"]}
    if odd:
        raise ScoresDamaged(f"{folder}: {', '.join(sorted(odd))} missing, added or changed; delete it and score again")
    return _score_set(folder, entries)


def read(folder: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """All rows of a folder, sorted by point_id.

    Args:
        folder: A folder of shards.
        columns: Columns to read; all when None. `point_id` always comes along.
    """
    wanted = None if columns is None else list(dict.fromkeys(["point_id", *columns]))
    tables = [pq.read_table(path, columns=wanted).replace_schema_metadata(None) for path in shards(folder)]
    if not tables:
        raise StorageError(f"{folder} holds no score shards; score first")
    return pa.concat_tables(tables).sort_by("point_id")
