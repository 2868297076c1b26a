"""captum: TracIn over checkpoints, and influence functions on the Hessian of the mean loss."""

from __future__ import annotations

import copy
from typing import Any

from captum.influence import TracInCP, TracInCPFast
from captum.influence._core.arnoldi_influence_function import ArnoldiInfluenceFunction
from captum.influence._core.influence_function import NaiveInfluenceFunction
from torch import Tensor, nn

from tests.benchmarks.peer_problem import Method, Problem, dataset

PROJECTION, KRYLOV = 50, 200


def _load(model: nn.Module, checkpoint: nn.Module) -> float:
    """Load one; its weight in the sum is 1, since the learning rate ends at 0."""
    model.load_state_dict(checkpoint.state_dict())
    return 1.0


def _given(problem: Problem, reduction: str) -> dict[str, Any]:
    return {
        "model": copy.deepcopy(problem.model),
        "train_dataset": dataset(problem.train),
        "checkpoints_load_func": _load,
        "loss_fn": nn.CrossEntropyLoss(reduction=reduction),
        "batch_size": problem.points,
    }


def _pairs(problem: Problem, made: Any) -> Tensor:
    found: Tensor = made.influence(problem.queries)  # [m, n]
    return found.detach().T / problem.points


def _tracin(problem: Problem, damping: float, checkpoints: int) -> Tensor:
    given, chosen = _given(problem, "sum"), problem.checkpoints[-checkpoints:]
    return _pairs(problem, TracInCP(**given, checkpoints=chosen, sample_wise_grads_per_batch=True))


def _tracin_fast(problem: Problem, damping: float) -> Tensor:
    given = _given(problem, "sum")
    return _pairs(problem, TracInCPFast(**given, final_fc_layer=given["model"][-1], checkpoints=problem.checkpoints))


def _arnoldi(problem: Problem, damping: float) -> Tensor:
    made = ArnoldiInfluenceFunction(
        **_given(problem, "mean"), checkpoint=problem.model, sample_wise_grads_per_batch=True,
        projection_dim=PROJECTION, arnoldi_dim=KRYLOV, hessian_reg=damping, seed=problem.seed,
    )  # fmt: skip
    return _pairs(problem, made)


def _naive(problem: Problem, damping: float) -> Tensor:
    parameters = sum(one.numel() for one in problem.model.parameters())
    made = NaiveInfluenceFunction(
        **_given(problem, "mean"), checkpoint=problem.model, sample_wise_grads_per_batch=True,
        projection_dim=parameters, hessian_reg=damping,
    )  # fmt: skip
    return _pairs(problem, made)


METHODS: dict[str, Method] = {
    "TracInCP, last checkpoint": lambda problem, damping: _tracin(problem, damping, 1),
    "TracInCP, 4 checkpoints": lambda problem, damping: _tracin(problem, damping, 4),
    "TracInCPFast, 4 checkpoints": _tracin_fast,
    "Arnoldi, rank 50": _arnoldi,
    "naive": _naive,
}
