"""What a training did beside its weights: the points and the learning rate of every step.

<checkpoints>/<role>-seed…/trajectory.parquet   step from 1, learning_rate, point_ids in the order of the batch
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from storage.files import atomic_path

TRAJECTORY = "trajectory.parquet"


def write(folder: Path, ids: pa.Array, batches: Sequence[NDArray[Any]], rates: Sequence[float]) -> None:
    """Write the file, whole or not at all.

    Args:
        folder: Of the trained model.
        ids: Of all points.
        batches: Places in `ids` of the points of every step.
        rates: Learning rate of every step.
    """
    ends = np.cumsum([0, *map(len, batches)])
    points = pa.LargeListArray.from_arrays(ends, ids.take(pa.array(np.concatenate(batches))))
    steps = pa.array(range(1, len(batches) + 1), type=pa.int64())
    table = pa.table({"step": steps, "learning_rate": pa.array(rates, type=pa.float64()), "point_ids": points})
    with atomic_path(folder / TRAJECTORY) as draft:
        pq.write_table(table, draft)
