"""pyDVL: its solvers on the Hessian of the mean loss, all queries at once."""

from __future__ import annotations

import torch
from pydvl.influence.torch import (
    ArnoldiInfluence,
    CgInfluence,
    DirectInfluence,
    EkfacInfluence,
    LissaInfluence,
    NystroemSketchInfluence,
)
from pydvl.influence.torch.base import TorchComposableInfluence
from torch import Tensor
from torch.nn.functional import cross_entropy

from tests.benchmarks.peer_problem import Method, Problem, loader

RANK = 50
STEPS, SCALE, BATCH = 200, 20.0, 50  # of LiSSA


def _scores(problem: Problem, influence: TorchComposableInfluence | EkfacInfluence, batch: int | None = None) -> Tensor:
    torch.manual_seed(problem.seed)
    fitted = influence.fit(loader(problem.train, batch))
    found: Tensor = fitted.influences(*problem.queries, *problem.train).detach()  # [m, n]
    return found.T / problem.points


def _direct(problem: Problem, damping: float) -> Tensor:
    return _scores(problem, DirectInfluence(problem.model, cross_entropy, regularization=damping))


def _conjugate(problem: Problem, damping: float) -> Tensor:
    solver = CgInfluence(problem.model, cross_entropy, damping, rtol=1e-3, maxiter=200, solve_simultaneously=True)
    return _scores(problem, solver)


def _lissa(problem: Problem, damping: float) -> Tensor:
    solver = LissaInfluence(problem.model, cross_entropy, damping, maxiter=STEPS, scale=SCALE)
    return _scores(problem, solver, BATCH)


def _arnoldi(problem: Problem, damping: float, whole: bool) -> Tensor:
    return _scores(problem, ArnoldiInfluence(problem.model, cross_entropy, damping, rank=RANK, use_woodbury=whole))


def _nystroem(problem: Problem, damping: float) -> Tensor:
    return _scores(problem, NystroemSketchInfluence(problem.model, cross_entropy, damping, rank=RANK))


def _ekfac(problem: Problem, damping: float) -> Tensor:
    return _scores(problem, EkfacInfluence(problem.model, update_diagonal=True, hessian_regularization=damping))


METHODS: dict[str, Method] = {
    "direct": _direct,
    "CG": _conjugate,
    "LiSSA": _lissa,
    "Arnoldi, rank 50": lambda problem, damping: _arnoldi(problem, damping, whole=False),
    "Arnoldi, rank 50, with the complement": lambda problem, damping: _arnoldi(problem, damping, whole=True),
    "Nystroem, rank 50": _nystroem,
    "EK-FAC": _ekfac,
}
