"""What a training did beside its weights: the points and the learning rate of every step, for whoever replays it.

<checkpoints>/<role>-seed…/trajectory.parquet   step from 1, learning_rate, point_ids in the order of the batch; in the
                                                metadata the optimizer
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from storage.errors import StorageError
from storage.files import atomic_path

TRAJECTORY = "trajectory.parquet"
OPTIMIZER = b"tamis.optimizer"


@dataclass(frozen=True)
class Trained:
    """The steps of a training, in their order.

    Attributes:
        point_ids: Of every step, in the order of its batch.
        rates: Learning rate of every step.
    """

    point_ids: Sequence[Sequence[int | str]]
    rates: Sequence[float]


def write(folder: Path, ids: pa.Array, batches: Sequence[NDArray[Any]], rates: Sequence[float], optimizer: str) -> None:
    """Write the file, whole or not at all.

    Args:
        folder: Of the trained model.
        ids: Of all points.
        batches: Places in `ids` of the points of every step.
        rates: Learning rate of every step.
        optimizer: That made the steps.
    """
    ends = np.cumsum([0, *map(len, batches)])
    points = pa.LargeListArray.from_arrays(ends, ids.take(pa.array(np.concatenate(batches))))
    steps = pa.array(range(1, len(batches) + 1), type=pa.int64())
    table = pa.table({"step": steps, "learning_rate": pa.array(rates, type=pa.float64()), "point_ids": points})
    with atomic_path(folder / TRAJECTORY) as draft:
        pq.write_table(table.replace_schema_metadata({OPTIMIZER: optimizer.encode()}), draft)


def read(folder: Path, optimizer: str) -> Trained:
    """The steps, to be made again by the same optimizer.

    Args:
        folder: Of the trained model.
        optimizer: That replays them, or that a formula takes them for: what influence says of a trajectory is of SGD.

    Raises:
        StorageError: Another one made them, or the file, of an older version, does not tell.
    """
    path = folder / TRAJECTORY
    table = pq.read_table(path)
    made = (table.schema.metadata or {}).get(OPTIMIZER, b"an optimizer that the file does not name").decode()
    if made != optimizer:
        raise StorageError(
            f"{path}: the steps were made by {made}, and what holds of steps of {optimizer} does not hold of them; "
            f"replay them by {made}, or record a training of your own by {optimizer}"
        )
    return Trained(table["point_ids"].to_pylist(), table["learning_rate"].to_pylist())
