"""The manifest: unique typed ids, a hash of the current view, no leakage."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.errors import DuplicatePoint, MixedPointIds, OverlappingSets, StorageError, UnknownPoint
from storage.points import Manifest, PointId, check_disjoint, dataset_sha256, id_from_text, id_text


def manifest(ids: list[PointId], prefix: str = "") -> Manifest:
    return Manifest.build(ids, [f"c{prefix}{i}" for i in ids], [f"i{prefix}{i}" for i in ids], [0] * len(ids))


def test_integers_sort_by_value_and_strings_by_code_point() -> None:
    assert manifest([10, -1, 9]).ids == [-1, 9, 10]
    assert manifest(["10", "é", "9", "Z", "a"]).ids == ["10", "9", "Z", "a", "é"]


def test_the_view_and_its_hash_do_not_depend_on_the_order_given() -> None:
    one, other = manifest([1, 2, 3]), manifest([3, 1, 2])
    assert dataset_sha256(one) == dataset_sha256(other)
    assert dataset_sha256(one, {2}) == dataset_sha256(manifest([1, 3]))
    assert one.without({2, 99}).ids == [1, 3]


def test_the_hash_of_a_data_set_is_what_its_definition_says() -> None:
    def sha256(*parts: bytes) -> str:
        return hashlib.sha256(b"".join(parts)).hexdigest()

    def integers(*values: int) -> str:
        return sha256(*(value.to_bytes(8, "little", signed=True) for value in values))

    built = Manifest.build([2, 1], ["é", "a"], ["d", "c"], [1, None], ["g", None])
    columns = {
        "point_id": [integers(1, 2), sha256()],
        "content": [integers(1, 2), sha256("aé".encode())],
        "label": [integers(-(2**63), 1), sha256()],
        "group": [integers(-1, 1), sha256(b"g")],
    }
    text = json.dumps({"rows": 2, "id_kind": "int"} | columns, sort_keys=True, separators=(",", ":"))
    assert dataset_sha256(built) == sha256(text.encode())
    # and never another between versions
    assert dataset_sha256(built) == "17104428723c815fec2ddbc69011acd25fb3d4205556ef87e15ccad462ca940e"


def test_the_hash_does_not_depend_on_how_rows_are_cut_into_batches(tmp_path: Path) -> None:
    ids: list[PointId] = [f"p{row:03d}" for row in range(100)]
    groups = [None if row % 3 else f"g{row}" for row in range(100)]
    whole = Manifest.build(ids, [f"c{i}" for i in ids], ids, [row % 4 for row in range(100)], groups)
    cut = pa.concat_tables([whole.table.slice(at, 7) for at in range(0, 100, 7)])
    digests = {dataset_sha256(Manifest(table), ["p003"], {"p009": 2}) for table in (whole.table, cut)}
    pq.write_table(whole.table, tmp_path / "points.parquet", row_group_size=11)
    digests.add(dataset_sha256(Manifest.read(tmp_path / "points.parquet"), ["p003"], {"p009": 2}))
    assert len(digests) == 1


def test_the_view_overrides_labels_and_nothing_else() -> None:
    one = manifest([1, 2, 3])
    view = one.view({2}, {3: 5, 99: 1})
    assert view.table.to_pylist() == [one.table.to_pylist()[0], one.table.to_pylist()[2] | {"label": 5}]
    assert view.table.schema == one.table.schema
    assert dataset_sha256(one, {2}, {3: 5}) == dataset_sha256(view) != dataset_sha256(one, {2})
    assert one.view((), {2: 0}).table.equals(one.table), "a label that is the given one changes nothing"


@pytest.mark.parametrize("change", ["id", "content", "label", "group", "type"])
def test_any_change_of_a_point_changes_the_hash(change: str) -> None:
    def build(ids: list[PointId], content: str = "c", label: int = 0, group: str | None = None) -> str:
        return dataset_sha256(Manifest.build(ids, [content], ["i"], [label], [group]))

    changed = {
        "id": build([2]),
        "content": build([1], content="d"),
        "label": build([1], label=1),
        "group": build([1], group="g"),
        "type": build(["1"]),
    }
    assert changed[change] != build([1])


def test_duplicate_ids_are_refused_by_name() -> None:
    with pytest.raises(DuplicatePoint, match=r"2 point ids occur more than once in the data set: 3, 7;"):
        manifest([7, 3, 7, 1, 3])


@pytest.mark.parametrize("ids", [[1, "1"], ["a", 2], [1, True], [1.0], [None], [2**63]])
def test_mixed_or_unfit_ids_are_refused(ids: list[PointId]) -> None:
    with pytest.raises(MixedPointIds, match="integer"):
        manifest(ids)


def test_numpy_integers_are_integers() -> None:
    assert manifest(list(np.arange(3))).ids == [0, 1, 2]


def test_columns_of_different_length_are_refused() -> None:
    with pytest.raises(StorageError, match="differ in length"):
        Manifest.build([1, 2], ["a"], ["b", "c"])


def test_the_same_sample_in_two_sets_is_leakage_whatever_its_id_and_label() -> None:
    train, query = manifest([1, 2], "t"), manifest([1, 2], "q")
    check_disjoint(train, query, manifest([1], "h"))
    holdout = Manifest.build(["x", "y"], ["other", "label"], ["it2", "ih"], [5, 5])
    with pytest.raises(OverlappingSets, match=r"1 samples of the train set are also in the holdout set, train ids 2;"):
        check_disjoint(train, query, holdout)
    with pytest.raises(OverlappingSets, match="query set are also in the holdout"):
        check_disjoint(train, query, query)


def test_a_manifest_reads_back_as_written(tmp_path: Path) -> None:
    for built in (manifest([3, 1]), manifest(["b", "a"])):
        built.write(tmp_path / "points.parquet")
        again = Manifest.read(tmp_path / "points.parquet")
        assert again.table.equals(built.table)
        assert again.id_kind == built.id_kind
    (tmp_path / "points.parquet").write_bytes(b"torn")
    with pytest.raises(StorageError, match="cannot read the manifest"):
        Manifest.read(tmp_path / "points.parquet")


def test_ids_survive_the_ledger_as_text() -> None:
    assert id_from_text(id_text(-7), "int") == -7
    assert id_from_text(id_text("007"), "string") == "007"
    with pytest.raises(UnknownPoint, match="integers"):
        id_from_text("seven", "int")
