"""Leave-one-out where it is exact: a softmax regression, whose minimum is found anew without each of some points."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from flows.workloads.digits import Digits
from influence import EKFAC, PCG, Curvature, Damping, GaussNewton, Influence, linear_blocks, pearson
from influence.convex import minimise
from tests.proof.lds_estimators import TASK

RIDGE = 0.01
LEFT_OUT = 100
POINTS, QUERIES = 1000, 200


@dataclass(frozen=True)
class Exact:
    """One estimator on one split.

    Attributes:
        pearson: of predicted and real rises of all left-out points and all queries.
        seconds: of processor time, to fit and to score all pairs.
    """

    pearson: float
    seconds: float


def cell(seed: int, folder: Path) -> dict[str, Exact]:
    """The estimators on the split of a seed; not measured again if the folder holds it."""
    path = folder / f"convex-{seed}.pt"
    if not path.exists():
        torch.save({name: (one.pearson, one.seconds) for name, one in _measure(seed).items()}, path)
    return {name: Exact(*one) for name, one in torch.load(path).items()}


def _measure(seed: int) -> dict[str, Exact]:
    workload = Digits(points=POINTS, queries=QUERIES, rate=0.0, seed=seed)
    (x, y), (queries, asked) = (
        (workload.inputs(batch).double(), batch[1])
        for batch in (one.batch_of(torch.arange(len(one))) for one in (workload.points(), workload.queries()))
    )
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 10)).double()

    def fitted(left_out: int | None) -> Tensor:
        minimise(model, lambda: cross_entropy(model(x), y, reduction="none"), RIDGE, left_out)
        with torch.no_grad():
            return cross_entropy(model(queries), asked, reduction="none")  # [m]

    before, optimum = fitted(None), copy.deepcopy(model.state_dict())
    draw = torch.randperm(POINTS, generator=torch.Generator().manual_seed(seed))[:LEFT_OUT]
    rises = []
    for place in draw.tolist():
        model.load_state_dict(optimum)
        rises.append(fitted(place) - before)
    model.load_state_dict(optimum)
    real, blocks = torch.stack(rises), linear_blocks(model)  # [r, m]
    curvatures: dict[str, Curvature] = {
        "Gauss-Newton, dense": GaussNewton(blocks),
        "PCG, preconditioned by EK-FAC": PCG(blocks, EKFAC(blocks)),
        "EK-FAC": EKFAC(blocks),
    }
    found = {}
    for name, curvature in curvatures.items():
        started = time.process_time()
        with Influence(model, TASK, curvature, blocks) as influence:
            influence.fit([(x, y)], Damping("absolute", RIDGE))
            scores = influence.pairs([(x, y)], [(queries, asked)], own=False).influence
        found[name] = Exact(pearson(scores[draw], real), time.process_time() - started)
    return found
