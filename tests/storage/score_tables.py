"""Small score tables, and rules over them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from storage import score_store
from storage.budgets import Budgets
from storage.policies import Rule
from storage.selection import select

METADATA = score_store.ScoreMetadata(1, "ekfac", ["fc"], None, "checkpoint", "inputs")
HARMFUL = Rule("harmful", "harmful", "influence", "<", 0.0, parameters={"q": 0.2})
MISLABELED = Rule("mislabeled", "mislabeled", "suspicion", ">=", 0.5)
ALL = Budgets(1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Row:
    point: int | str
    influence: float
    label: int | None = 0
    suspicion: float | None = None
    in_train: bool = True
    group: str | None = None
    suggested: int = 0
    repeats: int | str | None = None
    balance: float | None = None


def write(folder: Path, rows: Sequence[Row], chunk: int = 4) -> Path:
    for c, start in enumerate(range(0, len(rows), chunk)):
        part = rows[start : start + chunk]
        table = pa.table(
            {
                "point_id": [row.point for row in part],
                "cycle": [1] * len(part),
                "in_train": [row.in_train for row in part],
                "loss": [0.0] * len(part),
                "influence": [row.influence for row in part],
                "influence_se": [0.1] * len(part),
                "self_influence": [0.0] * len(part),
                "label": pa.array([row.label for row in part], pa.int32()),
                "suspicion": pa.array([row.suspicion for row in part], pa.float64()),
                "group": pa.array([row.group for row in part], pa.string()),
                "repeats": pa.array([row.repeats for row in part], _ids([row.point for row in rows])),
                "balance": pa.array([row.balance for row in part], pa.float64()),
                "suggested": pa.array([row.suggested for row in part], pa.int32()),
            }
        )
        score_store.write_chunk(folder, 0, c, table, METADATA)
    return folder


def _ids(points: Sequence[int | str]) -> pa.DataType:
    return pa.array(points).type


def chosen(folder: Path, rules: Sequence[Rule], budgets: Budgets) -> list[int | str]:
    rows: list[int | str] = select(folder, rules, budgets).rows["point_id"].to_pylist()
    return rows
