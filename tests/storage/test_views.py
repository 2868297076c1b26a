"""The data set as of a cycle, out of core: the same points, labels and hash as in memory."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage import views
from storage.dataset_digest import DatasetDigest
from storage.errors import StorageError
from storage.points import Manifest, PointId, dataset_sha256
from storage.views import Decisions, parts

COUNT = 500


def manifest(kind: str) -> Manifest:
    ids: list[PointId] = [3 * row - 90 if kind == "int" else f"é{row:04d}" for row in range(COUNT)]
    content = [f"content {row}" for row in range(COUNT)]
    return Manifest.build(ids, content, content, [row % 10 or None for row in range(COUNT)], ["g", None] * (COUNT // 2))


def decided(whole: Manifest, rows: list[int], **columns: list[object]) -> pa.Table:
    """Decisions on some rows of a manifest, in that order."""
    table = whole.table.select(["point_id", "content"]).take(pa.array(rows, pa.int64()))
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values, pa.int32()))
    return table


@pytest.mark.parametrize("kind", ["int", "string"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
def test_the_stream_has_the_points_labels_and_hash_of_the_view_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, share: float
) -> None:
    monkeypatch.setattr(views, "ROWS", 37)
    whole = manifest(kind)
    pq.write_table(whole.table, tmp_path / "m.parquet", row_group_size=64)
    chosen = np.random.default_rng(0).permutation(COUNT)[: int(share * COUNT)].tolist()
    out, other = chosen[::2], chosen[1::2]
    labels = [row % 3 for row in other]
    decisions = Decisions(decided(whole, out), decided(whole, other, label=labels))
    digest, kept, removed, relabeled = DatasetDigest(), [], [], []
    for part in parts(tmp_path / "m.parquet", decisions):
        digest.update(part.kept)
        kept.append(part.kept)
        removed += part.removed.to_pylist()
        relabeled += part.relabeled.to_pylist()
    overridden = dict(zip((whole.ids[row] for row in other), labels))
    view = whole.view([whole.ids[row] for row in out], overridden)
    assert pa.Table.from_batches(kept).equals(view.table.drop_columns("inputs"))
    assert digest.hexdigest() == dataset_sha256(view)
    assert [row["point_id"] for row in removed] == [whole.ids[row] for row in sorted(out)]
    assert {row["point_id"]: row["label"] for row in relabeled} == overridden
    assert [row["given"] for row in relabeled] == [row % 10 or None for row in sorted(other)]


def test_a_decision_on_other_content_or_on_a_point_that_is_gone_decides_nothing(tmp_path: Path) -> None:
    whole = manifest("int")
    whole.write(tmp_path / "m.parquet")
    ids, old = pa.array([0, 3, 10**6]), pa.array(["content 30", "before", "content 1"])
    decisions = pa.table({"point_id": ids, "content": old})
    labels = decisions.append_column("label", pa.array([7, 7, 7], pa.int32()))
    [first] = parts(tmp_path / "m.parquet", Decisions(decisions, labels.slice(1)))
    assert first.removed.to_pylist() == [{"point_id": 0, "content": "content 30"}]
    assert first.relabeled.num_rows == 0
    assert first.kept.num_rows == COUNT - 1


def test_a_file_that_is_no_manifest_is_refused_by_name(tmp_path: Path) -> None:
    none = decided(manifest("int"), [])
    with pytest.raises(StorageError, match=r"cannot read the manifest .*m\.parquet"):
        next(parts(tmp_path / "m.parquet", Decisions(none, none)))
