"""Score shards: whole chunks, resumed by chunk, sealed, unique ids, finite numbers."""

import math
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage import score_store
from storage.errors import DuplicatePoint, ScoresDamaged, ScoresInvalid, StorageError
from storage.score_store import ScoreMetadata

METADATA = ScoreMetadata(3, "ekfac", ["fc1", "fc2"], {"kind": "absolute", "value": 1e-3}, "checkpoint", "inputs")


def scores(ids: list[int], **columns: list[object]) -> pa.Table:
    n = len(ids)
    return pa.table(
        {
            "point_id": pa.array(ids, pa.int64()),
            "cycle": [3] * n,
            "in_train": [True] * n,
            "loss": [0.1] * n,
            "influence": [float(i) for i in ids],
            "influence_se": [0.1] * n,
            "self_influence": [1.0] * n,
            **columns,
        }
    )


def write(folder: Path, *chunks: list[int]) -> None:
    for chunk, ids in enumerate(chunks):
        score_store.write_chunk(folder, chunk % 2, chunk, scores(ids), METADATA)


def test_finished_scores_read_back_sorted_with_how_they_were_made(tmp_path: Path) -> None:
    write(tmp_path, [5, 1], [2], [4])
    made = score_store.finish(tmp_path, 3)
    assert [path.name for path in made.shards] == [
        "part-r000-c00000.parquet",
        "part-r001-c00001.parquet",
        "part-r000-c00002.parquet",
    ]
    assert made == score_store.load(tmp_path)
    assert made.rows == 4
    assert made.metadata == METADATA
    assert score_store.read(tmp_path, ["loss"])["point_id"].to_pylist() == [1, 2, 4, 5]
    pairs = pq.read_schema(made.shards[0]).metadata
    assert b"positive = helpful" in pairs[b"tamis.sign"]
    assert pairs[b"tamis.unit"] == b'"nats"'


def test_a_resumed_run_computes_the_missing_chunks_and_no_other(tmp_path: Path) -> None:
    assert score_store.missing_chunks(tmp_path, 2, "inputs") == (0, 1)
    score_store.write_chunk(tmp_path, 1, 1, scores([1]), METADATA)
    assert score_store.missing_chunks(tmp_path, 4, "inputs") == (0, 2, 3)
    assert score_store.missing_chunks(tmp_path, 2, "other inputs") == (0, 1)
    assert score_store.load(tmp_path) is None


def test_sweep_deletes_what_a_kill_or_other_inputs_left_and_keeps_the_rest(tmp_path: Path) -> None:
    write(tmp_path, [1], [2])
    score_store.finish(tmp_path, 2)
    torn = tmp_path / ".part-r000-c00002.parquet.17.tmp"
    torn.write_bytes(b"half")
    assert score_store.sweep(tmp_path, "inputs") == (torn,)
    assert score_store.load(tmp_path) is not None
    assert len(score_store.sweep(tmp_path, "new inputs")) == 3, "the manifest goes with the shards it seals"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("influence", math.nan, "influence is not finite for 1 points: 8;"),
        ("signal_knn", math.inf, "signal_knn is not finite for 1 points: 8;"),
        ("loss", None, "loss is null for 1 points: 8;"),
    ],
)
def test_a_score_that_is_no_number_names_the_column_and_the_point(
    tmp_path: Path, column: str, value: float | None, message: str
) -> None:
    table = scores([7, 8], **{column: [0.0, value]})
    with pytest.raises(ScoresInvalid, match=message):
        score_store.write_chunk(tmp_path, 0, 0, table, METADATA)
    assert list(tmp_path.iterdir()) == []


def test_null_is_how_an_optional_score_says_that_there_is_none(tmp_path: Path) -> None:
    score_store.write_chunk(tmp_path, 0, 0, scores([7, 8], margin=[None, 1.0]), METADATA)
    with pytest.raises(ScoresInvalid, match="lacks influence_se"):
        score_store.write_chunk(tmp_path, 0, 0, scores([7]).drop_columns(["influence_se"]), METADATA)


def test_a_point_scored_twice_is_refused_within_and_across_shards(tmp_path: Path) -> None:
    with pytest.raises(DuplicatePoint, match="score chunk 0: 1"):
        score_store.write_chunk(tmp_path, 0, 0, scores([1, 1]), METADATA)
    write(tmp_path, [1, 2], [3, 2])
    with pytest.raises(DuplicatePoint, match="the score shards: 2"):
        score_store.finish(tmp_path, 2)


def test_a_chunk_that_is_missing_or_there_twice_is_not_sealed(tmp_path: Path) -> None:
    write(tmp_path, [1], [2])
    with pytest.raises(ScoresInvalid, match=r"missing \[2\], twice \[\]"):
        score_store.finish(tmp_path, 3)
    score_store.write_chunk(tmp_path, 1, 0, scores([9]), METADATA)
    with pytest.raises(ScoresInvalid, match=r"missing \[\], twice \[0\]"):
        score_store.finish(tmp_path, 2)


def test_shards_of_different_inputs_are_not_sealed_together(tmp_path: Path) -> None:
    write(tmp_path, [1])
    score_store.write_chunk(tmp_path, 0, 1, scores([2]), replace(METADATA, checkpoint_digest="another"))
    with pytest.raises(ScoresInvalid, match="differ in their inputs"):
        score_store.finish(tmp_path, 2)


def test_a_changed_byte_or_a_lost_shard_is_detected(tmp_path: Path) -> None:
    write(tmp_path, [1], [2])
    shard = score_store.finish(tmp_path, 2).shards[1]
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ScoresDamaged, match=shard.name):
        score_store.load(tmp_path)
    shard.unlink()
    with pytest.raises(ScoresDamaged, match=shard.name):
        score_store.load(tmp_path)


def test_reading_what_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no score shards"):
        score_store.read(tmp_path)


def test_scores_without_a_cycle_are_one_file_that_says_how_they_were_made(tmp_path: Path) -> None:
    table = scores([3, 1]).drop_columns("cycle")
    score_store.write_file(tmp_path / "s.parquet", table, {"estimator": "ekfac"})
    pairs = pq.read_schema(tmp_path / "s.parquet").metadata
    assert pairs[b"tamis.estimator"] == b'"ekfac"'
    assert b"helpful" in pairs[b"tamis.sign"]
    assert pq.read_table(tmp_path / "s.parquet").num_rows == 2
    with pytest.raises(DuplicatePoint, match=r"s\.parquet"):
        score_store.write_file(tmp_path / "s.parquet", scores([3, 3]), {})
    with pytest.raises(ScoresInvalid, match="self_influence"):
        score_store.write_file(tmp_path / "s.parquet", table.drop_columns("self_influence"), {})
