"""Ours, through the public engine as a user would run it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from influence import (
    EKFAC,
    PCG,
    Blocks,
    Curvature,
    Damping,
    DualGaussNewton,
    Identity,
    Influence,
    Task,
    linear_blocks,
    over_checkpoints,
)
from influence.curvature.arnoldi import Arnoldi
from tests.benchmarks.peer_problem import Batch, Method, Problem
from tests.left_out.datainf import DataInf
from tests.left_out.diagonal import Diagonal
from tests.left_out.lissa import LiSSA

BATCH = 250
RANK, KRYLOV = 50, 200  # of Arnoldi
STEPS = 200  # of LiSSA
CUT = 1e-3  # share of the trace that the dual leaves out
TASK: Task[Batch] = Task(logits=lambda model, batch: model(batch[0]), labels=lambda batch: batch[1])


def _last(curvature: Callable[[Blocks], Curvature]) -> Method:
    return lambda problem, damping: _pairs(problem, problem.model, curvature, damping)


def _gradient_dots(problem: Problem, damping: float) -> Tensor:
    return over_checkpoints([_pairs(problem, model, Identity, damping) for model in problem.checkpoints])


def _pairs(problem: Problem, model: nn.Module, curvature: Callable[[Blocks], Curvature], damping: float) -> Tensor:
    train, queries = _batches(problem.train), _batches(problem.queries)
    blocks = linear_blocks(model)
    with Influence(model, TASK, curvature(blocks), blocks) as influence:
        influence.fit(train, Damping("absolute", damping))
        return influence.pairs(train, queries, own=False).influence


def _batches(points: Batch) -> list[Batch]:
    return list(zip(points[0].split(BATCH), points[1].split(BATCH), strict=True))


METHODS: dict[str, Method] = {
    "gradient dot": _last(Identity),
    "gradient dot, 4 checkpoints": _gradient_dots,
    "EK-FAC": _last(EKFAC),
    "dual GGN": _last(lambda blocks: DualGaussNewton(blocks, cut=CUT)),
    "PCG": _last(PCG),
    "Arnoldi, rank 50, published form": _last(lambda blocks: Arnoldi(blocks, RANK, KRYLOV, complement=False)),
    "Arnoldi, rank 50, with the complement": _last(lambda blocks: Arnoldi(blocks, RANK, KRYLOV)),
    "LiSSA": _last(lambda blocks: LiSSA(blocks, STEPS)),
    "DataInf": _last(DataInf),
    "diagonal": _last(Diagonal),
}
