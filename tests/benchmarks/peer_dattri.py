"""dattri: its attributors, on the mean loss where they take a Hessian."""

from __future__ import annotations

from typing import Any

import torch
from dattri.algorithm.influence_function import (
    IFAttributorArnoldi,
    IFAttributorCG,
    IFAttributorDataInf,
    IFAttributorEKFAC,
    IFAttributorExplicit,
    IFAttributorLiSSA,
)
from dattri.algorithm.tracin import TracInAttributor
from dattri.algorithm.trak import TRAKAttributor
from dattri.task import AttributionTask
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from tests.benchmarks.peer_problem import Batch, Method, Problem, loader

RANK, KRYLOV = 50, 200
ITERATIONS, TOGETHER = 20, 25  # of CG; queries at a time
STEPS, SCALE, BATCH = 200, 20.0, 10  # of LiSSA
PROJECTED = 512  # of TRAK

Parameters = dict[str, Tensor]


def _task(problem: Problem, target: Any = None, checkpoints: int = 1) -> AttributionTask:
    def loss(parameters: Parameters, batch: Batch) -> Tensor:
        inputs, labels = batch
        logits = functional_call(problem.model, parameters, (inputs,))
        return cross_entropy(logits.view(-1, logits.shape[-1]), labels.long().view(-1))  # LiSSA makes labels floats

    states = [model.state_dict() for model in problem.checkpoints[-checkpoints:]]
    return AttributionTask(loss, problem.model, states, target)


def _solved(problem: Problem, attributor: Any, queries: int | None = None) -> Tensor:
    """Through one batch of all train points: what dattri makes of several is a sum of inverses."""
    torch.manual_seed(problem.seed)
    attributor.cache(loader(problem.train))
    found: Tensor = attributor.attribute(loader(problem.train), loader(problem.queries, queries))  # [n, m]
    return found.detach() / problem.points


def _explicit(problem: Problem, damping: float) -> Tensor:
    return _solved(problem, IFAttributorExplicit(_task(problem), regularization=damping))


def _conjugate(problem: Problem, damping: float) -> Tensor:
    return _solved(problem, IFAttributorCG(_task(problem), max_iter=ITERATIONS, regularization=damping), TOGETHER)


def _lissa(problem: Problem, damping: float) -> Tensor:
    """Its damping is of the recursion scaled to converge, so that damping / scale is the same number as ours."""
    solver = IFAttributorLiSSA(
        _task(problem), batch_size=BATCH, recursion_depth=STEPS, damping=damping / SCALE, scaling=SCALE
    )
    return _solved(problem, solver, TOGETHER)


def _arnoldi(problem: Problem, damping: float) -> Tensor:
    solver = IFAttributorArnoldi(
        _task(problem), proj_dim=RANK, max_iter=KRYLOV, regularization=damping, seed=problem.seed
    )
    return _solved(problem, solver)


def _datainf(problem: Problem, damping: float) -> Tensor:
    return _solved(problem, IFAttributorDataInf(_task(problem), regularization=damping), TOGETHER)


def _ekfac(problem: Problem, damping: float) -> Tensor:
    return _solved(problem, IFAttributorEKFAC(_task(problem), damping=damping))


def _tracin(problem: Problem, damping: float) -> Tensor:
    """Weights are 1: the learning rate ends at 0. Projected to 512 dimensions, which None does not turn off."""
    count = len(problem.checkpoints)
    attributor = TracInAttributor(_task(problem, checkpoints=count), torch.ones(count), normalized_grad=False)
    return attributor.attribute(loader(problem.train), loader(problem.queries)).detach() / problem.points


def _trak(problem: Problem, damping: float) -> Tensor:
    """Its kernel is of sums of gradients over the root of p, so the damping is brought to that scale."""

    def probability(parameters: Parameters, point: Batch) -> Tensor:
        return (
            functional_call(problem.model, parameters, (point[0],)).softmax(-1).gather(-1, point[1][..., None])[..., 0]
        )

    def odds(parameters: Parameters, batch: Batch) -> Tensor:
        p = probability(parameters, batch)
        return (p.log() - (-p).log1p()).sum()

    scale = problem.points / sum(one.numel() for one in problem.model.parameters())
    attributor = TRAKAttributor(
        _task(problem, odds), probability, {"proj_dim": PROJECTED}, regularization=damping * scale
    )
    return -attributor.attribute(loader(problem.queries), loader(problem.train)).detach()


METHODS: dict[str, Method] = {
    "explicit": _explicit,
    "CG": _conjugate,
    "LiSSA": _lissa,
    "Arnoldi, rank 50": _arnoldi,
    "DataInf": _datainf,
    "EK-FAC": _ekfac,
    "TracIn, 4 checkpoints": _tracin,
    "TRAK, 512 dimensions": _trak,
}
