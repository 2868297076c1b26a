"""Scores of several models as one: the checkpoints of one training, then several trainings.

Checkpoints are summed as they are: what a point does to a query adds up over training, and a model that has fitted its
points, so that their gradients have vanished, adds little. Trainings differ in scale by accident, and differently for
each query; there every model is to count the same.
"""

from collections.abc import Sequence
from math import isfinite

import torch
from torch import Tensor

from influence.errors import InfluenceError


def over_checkpoints(scores: Sequence[Tensor], rates: Sequence[float] | None = None) -> Tensor:
    """Sum of one model's scores at several points of its training; a scale in nats means little afterwards.

    With inner products of gradients (`Identity`) and learning rates this is TracIn, sum_t eta_t g_i(t)' g_q(t) / n
    (Pruthi et al. 2020, arXiv 2002.08484): to first order, what SGD's steps on a point took off a query's loss.

    Args:
        scores: influence at each checkpoint, [n, m].
        rates: for each checkpoint, the sum of the learning rates of the steps that it stands for; None: all 1.

    Returns:
        [n, m].
    """
    stacked = _stacked(scores)  # [checkpoints, n, m]
    if rates is None:
        return stacked.sum(0)
    if len(rates) != len(stacked) or not all(isfinite(rate) and rate >= 0 for rate in rates):
        raise InfluenceError(
            f"learning rates {list(rates)} for {len(stacked)} checkpoints: give one for each, at least 0"
        )
    return torch.einsum("t,tij->ij", stacked.new_tensor(rates), stacked)


def over_models(scores: Sequence[Tensor]) -> Tensor:
    """Mean over models of scores whose columns, one for each query, are first brought to norm 1; signs remain.

    Args:
        scores: influence by each model, [n, m]; a column of zeros adds nothing.

    Returns:
        [n, m], without unit: columns rank points for a query, and are not compared with each other.
    """
    stacked = _stacked(scores)  # [models, n, m]
    norms = stacked.norm(dim=1, keepdim=True)
    mean: Tensor = (stacked / norms.where(norms > 0, torch.ones(()))).mean(0)
    return mean


def _stacked(scores: Sequence[Tensor]) -> Tensor:
    shapes = {tuple(one.shape) for one in scores}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        raise InfluenceError(
            f"scores of shapes {sorted(shapes)}: give at least one, each [n, m] of the same points and queries"
        )
    return torch.stack(list(scores))
