from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage import trajectory_store
from storage.errors import StorageError
from storage.trajectory_store import TRAJECTORY

BATCHES = [np.array([2, 0], np.int32), np.array([1], np.int32), np.array([0, 0, 2], np.int32)]


@pytest.mark.parametrize("ids", [pa.array([7, 8, 9]), pa.array(["a", "b", "c"])])
def test_every_step_keeps_its_points_in_order_and_its_rate(tmp_path: Path, ids: pa.Array) -> None:
    trajectory_store.write(tmp_path / "baseline", ids, BATCHES, [0.1, 0.05, 1e-3], "AdamW")
    found = pq.read_table(tmp_path / "baseline" / TRAJECTORY)
    assert found["step"].to_pylist() == [1, 2, 3]
    assert found["learning_rate"].to_pylist() == [0.1, 0.05, 1e-3]
    assert found["point_ids"].to_pylist() == [[ids[row].as_py() for row in batch] for batch in BATCHES]
    assert found.schema.field("point_ids").type.value_type == ids.type
    again = trajectory_store.read(tmp_path / "baseline", "AdamW")
    assert again.rates == [0.1, 0.05, 1e-3]
    assert again.point_ids == found["point_ids"].to_pylist()


def test_steps_of_another_optimizer_are_refused_and_so_are_those_of_an_unknown_one(tmp_path: Path) -> None:
    trajectory_store.write(tmp_path, pa.array([7, 8, 9]), BATCHES, [0.1, 0.05, 1e-3], "AdamW")
    with pytest.raises(
        StorageError, match=r"the steps were made by AdamW, and what holds of steps of SGD does not[^\n]*$"
    ):
        trajectory_store.read(tmp_path, "SGD")
    older = pq.read_table(tmp_path / TRAJECTORY).replace_schema_metadata(None)
    pq.write_table(older, tmp_path / TRAJECTORY)
    with pytest.raises(StorageError, match=r"made by an optimizer that the file does not name[^\n]*$"):
        trajectory_store.read(tmp_path, "AdamW")


def test_a_write_that_fails_leaves_the_file_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trajectory_store.write(tmp_path, pa.array([7, 8, 9]), BATCHES, [0.1, 0.05, 1e-3], "AdamW")
    before = (tmp_path / TRAJECTORY).read_bytes()

    def torn(table: pa.Table, path: Path) -> None:
        path.write_bytes(b"torn")
        raise RuntimeError("killed")

    monkeypatch.setattr(pq, "write_table", torn)
    with pytest.raises(RuntimeError, match="killed"):
        trajectory_store.write(tmp_path, pa.array([7, 8, 9]), BATCHES[:1], [0.1], "AdamW")
    assert [path.name for path in tmp_path.iterdir()] == [TRAJECTORY]
    assert (tmp_path / TRAJECTORY).read_bytes() == before
