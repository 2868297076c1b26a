"""An export: the lists, the mask and the seal say the same, and nothing half written is left."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage import exports, views
from storage.errors import StorageError, WriteFailed
from storage.exports import Export, read_export, write_export
from storage.files import sha256_file
from storage.points import Manifest, PointId, dataset_sha256
from storage.views import Decisions

COUNT = 300
REMOVED, RELABELED = [7, 8, 9, 150, 299], {3: 5, 200: 5}


def whole(ids: list[PointId]) -> Manifest:
    content = [f"c{row}" for row in range(len(ids))]
    return Manifest.build(ids, content, content, [row % 4 for row in range(len(ids))])


def decisions(manifest: Manifest) -> Decisions:
    table = manifest.table.select(["point_id", "content"])
    label = pa.array(list(RELABELED.values()), pa.int32())
    return Decisions(table.take(REMOVED), table.take(list(RELABELED)).append_column("label", label))


def exported(folder: Path, manifest: Manifest, *, text: bool = False) -> Export:
    manifest.write(folder / "manifest.parquet")
    return write_export(folder / "out", folder / "manifest.parquet", decisions(manifest), 3, None, text=text)


@pytest.mark.parametrize("kind", ["int", "string"])
def test_the_lists_are_the_data_set_in_force_and_the_seal_has_its_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(views, "ROWS", 64)
    manifest = whole([row if kind == "int" else f"p{row:03d}" for row in range(COUNT)])
    export = exported(tmp_path, manifest, text=True)
    removed = [manifest.ids[row] for row in REMOVED]
    relabeled = {manifest.ids[row]: label for row, label in RELABELED.items()}
    view = manifest.view(removed, relabeled)
    assert pq.read_table(tmp_path / "out/kept.parquet").equals(view.table.select(["point_id", "label"]))
    assert pq.read_table(tmp_path / "out/removed.parquet").to_pylist() == [
        {"point_id": point, "content": f"c{row}"} for point, row in zip(removed, REMOVED)
    ]
    assert pq.read_table(tmp_path / "out/relabeled.parquet").to_pylist() == [
        {"point_id": point, "given": row % 4, "label": 5} for point, row in zip(relabeled, RELABELED)
    ]
    assert export.dataset_sha256 == dataset_sha256(manifest, removed, relabeled)
    assert (export.points, export.kept, export.removed, export.relabeled) == (COUNT, COUNT - 5, 5, 2)
    assert (export.cycle, export.id_kind, export.recorded_by) == (3, kind, None)
    lines = {name: (tmp_path / f"out/{name}.txt").read_text().splitlines() for name in ("kept", "removed", "relabeled")}
    assert lines["kept"] == [str(point) for point in view.ids]
    assert lines["removed"] == [str(point) for point in removed]
    assert lines["relabeled"] == [f"{point}\t5" for point in relabeled]
    assert json.loads((tmp_path / "out/export.json").read_text()) == asdict(export)
    assert read_export(tmp_path / "out") == export
    assert export.files == {
        path.name: sha256_file(path) for path in (tmp_path / "out").iterdir() if path.name != "export.json"
    }
    assert ("kept.npy" in export.files) == (export.mask_bits is not None) == (kind == "int")


@pytest.mark.parametrize(
    ("first", "step", "dense"), [(0, 1, True), (3, 1, True), (0, 2, True), (0, 3, False), (-1, 1, False)]
)
def test_dense_ids_have_a_mask_with_the_bit_of_every_kept_point_set(
    tmp_path: Path, first: int, step: int, dense: bool
) -> None:
    manifest = whole([first + step * row for row in range(COUNT)])
    export = exported(tmp_path, manifest)
    assert (export.mask_bits is not None) == (tmp_path / "out/kept.npy").exists() == dense
    if dense:
        assert export.mask_bits == manifest.ids[-1] + 1
        bits = np.unpackbits(np.load(tmp_path / "out/kept.npy"), bitorder="little")
        kept = manifest.view([manifest.ids[row] for row in REMOVED]).ids
        assert np.flatnonzero(bits).tolist() == kept


def test_a_data_set_that_is_not_the_recorded_one_is_not_exported(tmp_path: Path) -> None:
    manifest = whole(list(range(COUNT)))
    manifest.write(tmp_path / "m.parquet")
    with pytest.raises(StorageError, match=r"cycle 4 started from 000000000000 by the ledger"):
        write_export(tmp_path / "out", tmp_path / "m.parquet", decisions(manifest), 3, (4, "0" * 64), text=False)
    assert [path.name for path in tmp_path.iterdir()] == ["m.parquet"]
    sha256 = dataset_sha256(manifest, REMOVED, RELABELED)
    found = write_export(tmp_path / "out", tmp_path / "m.parquet", decisions(manifest), 3, (4, sha256), text=False)
    assert found.recorded_by == 4
    with pytest.raises(StorageError, match=r"out exists; give a folder that does not"):
        exported(tmp_path, manifest)


def test_a_manifest_that_is_gone_or_none_is_what_the_line_names(tmp_path: Path) -> None:
    none = decisions(whole(list(range(COUNT))))
    for text in (None, "no manifest"):
        if text is not None:
            (tmp_path / "m.parquet").write_text(text)
        with pytest.raises(StorageError, match=r"^cannot read the manifest .*m\.parquet: [^\n]+$"):
            write_export(tmp_path / "out", tmp_path / "m.parquet", none, 3, None, text=False)
        assert not (tmp_path / "out").exists()


def test_an_export_that_is_cut_short_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exports, "sha256_file", full)
    with pytest.raises(WriteFailed, match="No space left on device"):
        exported(tmp_path, whole(list(range(COUNT))))
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.parquet"]


@pytest.mark.parametrize("taker", [exports._Lists, exports.DatasetDigest])
def test_what_fails_in_a_thread_on_the_last_part_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taker: type
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(taker, "write" if taker is exports._Lists else "update", full)
    with pytest.raises(WriteFailed, match="No space left on device"):  # all of the points are one part
        exported(tmp_path, whole(list(range(COUNT))))
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.parquet"]


def test_an_export_that_was_changed_is_refused_by_the_name_of_the_file(tmp_path: Path) -> None:
    exported(tmp_path, whole(list(range(COUNT))))
    with (tmp_path / "out/removed.parquet").open("ab") as file:
        file.write(b"x")
    with pytest.raises(StorageError, match=r"removed\.parquet is missing or has changed"):
        read_export(tmp_path / "out")
    (tmp_path / "out/export.json").write_text('{"cycle": 3}')
    with pytest.raises(StorageError, match=r"export\.json is not of this version's exports"):
        read_export(tmp_path / "out")


def test_an_id_with_an_end_of_line_is_refused_as_text(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="has an end of line in its id"):
        exported(tmp_path, whole([f"p\n{row}" for row in range(COUNT)]), text=True)
