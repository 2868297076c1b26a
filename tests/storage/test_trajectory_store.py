from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage import trajectory_store
from storage.trajectory_store import TRAJECTORY

BATCHES = [np.array([2, 0], np.int32), np.array([1], np.int32), np.array([0, 0, 2], np.int32)]


@pytest.mark.parametrize("ids", [pa.array([7, 8, 9]), pa.array(["a", "b", "c"])])
def test_every_step_keeps_its_points_in_order_and_its_rate(tmp_path: Path, ids: pa.Array) -> None:
    trajectory_store.write(tmp_path / "baseline", ids, BATCHES, [0.1, 0.05, 1e-3])
    found = pq.read_table(tmp_path / "baseline" / TRAJECTORY)
    assert found["step"].to_pylist() == [1, 2, 3]
    assert found["learning_rate"].to_pylist() == [0.1, 0.05, 1e-3]
    assert found["point_ids"].to_pylist() == [[ids[row].as_py() for row in batch] for batch in BATCHES]
    assert found.schema.field("point_ids").type.value_type == ids.type


def test_a_write_that_fails_leaves_the_file_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trajectory_store.write(tmp_path, pa.array([7, 8, 9]), BATCHES, [0.1, 0.05, 1e-3])
    before = (tmp_path / TRAJECTORY).read_bytes()

    def torn(table: pa.Table, path: Path) -> None:
        path.write_bytes(b"torn")
        raise RuntimeError("killed")

    monkeypatch.setattr(pq, "write_table", torn)
    with pytest.raises(RuntimeError, match="killed"):
        trajectory_store.write(tmp_path, pa.array([7, 8, 9]), BATCHES[:1], [0.1])
    assert [path.name for path in tmp_path.iterdir()] == [TRAJECTORY]
    assert (tmp_path / TRAJECTORY).read_bytes() == before
