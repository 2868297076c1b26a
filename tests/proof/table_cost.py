"""What a row costs, in a process of its own: `python -m tests.proof.table_cost TASK ROW`.

Seconds of the processor are those of one thread, for every pair under one damping, and self-influence where the row's
flips are told, over as many checkpoints as it reads. The floor is one plain forward and backward over the same train
points and queries, all weights trainable, at the fastest of a few batch sizes. Memory is the highest resident size
above what is there before.
"""

from __future__ import annotations

import copy
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from tests.benchmarks.floor import SIZES, cpu_seconds
from tests.benchmarks.peak import status
from tests.proof.table_cells import clean
from tests.proof.table_rows import ROWS
from tests.proof.table_ways import Case

ROUNDS = 5


@dataclass(frozen=True)
class Cost:
    """Seconds of the processor, and megabytes."""

    seconds: float
    floor: float
    memory: float


def main() -> None:
    """Run the row twice: memory is that of both, seconds those of the second, when nothing is loaded any more."""
    torch.set_num_threads(1)
    task, name = sys.argv[1:]
    case, way = clean(task, 0), ROWS[name]
    before = status("VmRSS")
    own = not way.lds_alone
    way.score(case, way.multiples[:1], own)
    seconds = cpu_seconds(lambda: way.score(case, way.multiples[:1], own))
    memory = status("VmHWM") - before
    print(json.dumps(asdict(Cost(seconds, floor(case), memory / 1024))))


def floor(case: Case) -> float:
    """Seconds of the least time in which a plain forward and backward reads everything."""
    model = copy.deepcopy(case.checkpoints[-1]).requires_grad_(True)
    return min(cpu_seconds(lambda size=size: _once(model, case, size)) for size in SIZES for _ in range(ROUNDS))


def _once(model: nn.Module, case: Case, size: int) -> None:
    for points in (case.points, case.queries):
        for inputs, labels in zip(points.inputs.split(size), points.labels.split(size), strict=True):
            cross_entropy(model(inputs), labels, reduction="sum").backward()
            model.zero_grad()


def kept(path: Path) -> Cost:
    """What another process found."""
    return Cost(**json.loads(path.read_text()))


if __name__ == "__main__":
    main()
