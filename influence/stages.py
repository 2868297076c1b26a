"""From a fine-tuned prediction back to the points of both stages: of fine-tuning, and of the pre-training before it.

Pre-training ends at P = argmin (1/N) sum_z G_z(P) + its penalty, fine-tuning at V = argmin Phi(V, P),

    Phi = (1/n) sum_x F_x(P, V) + its penalty + alpha sum ||V_W - P_W||^2,

where W are the parameters that both have: those that fine-tuning trains on, held near what pre-training left. Where it
trains none of them, as a head on fixed features, P enters through the losses alone. Of a query f(P, V), with every
second derivative that of the objective at its minimum,

    s = Phi_VV^-1 f_V              influence of x = (1/n) s' d_V F_x
    r = f_P - Phi_PV s             influence of z = (1/N) r' G_PP^-1 d_P G_z

is the predicted rise of its loss if the point is removed from its stage and everything after is trained again: positive
= helpful. f_P is what the query sees of the pre-trained parameters itself, Phi_PV s what fine-tuning makes of them; of
parameters that are trained on, f_P is 0 and r = 2 alpha s. After Chen et al. 2020 (arXiv 2007.09081), whose sign is the
other. A network that has not converged has no such minimum: damp it by a penalty.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch.func import grad, jacrev, jvp, vmap

from influence.curvature.iterative import conjugate_gradients
from influence.factored import Gradients

Parameters = Mapping[str, Tensor]
Values = dict[str, Tensor]
Losses = Callable[[Parameters], Tensor]
T = TypeVar("T", Tensor, dict[str, Tensor])
TOLERANCE = 1e-8
LIMIT = 1000


def _nothing(parameters: Parameters) -> Tensor:
    return torch.zeros(())


@dataclass(frozen=True)
class Stage:
    """A stage of training at its end.

    Attributes:
        parameters: that it trained, by name, at the minimum of its objective; float64 solves best.
        losses: of each of its points, [n], a pure function; that of fine-tuning is given the pre-trained parameters
            too, and its own in place of those of the same name.
        penalty: what the objective adds to their mean, of its own parameters.
    """

    parameters: Parameters
    losses: Losses
    penalty: Losses = _nothing


@dataclass(frozen=True)
class StageInfluence:
    """Influence on m queries, nats, positive = helpful.

    Attributes:
        pretraining: of N points, [N, m].
        finetuning: of n points, [n, m].
    """

    pretraining: Tensor
    finetuning: Tensor


def stage_influence(
    pretraining: Stage, finetuning: Stage, queries: Losses, proximity: float = 0.0, tolerance: float = TOLERANCE
) -> StageInfluence:
    """Influence of the points of two stages, by conjugate gradients on both Hessians.

    Args:
        pretraining: the first.
        finetuning: the second.
        queries: losses [m] at the parameters of both.
        proximity: alpha, of the parameters that fine-tuning goes on with.
        tolerance: of the relative residuals.

    Raises:
        InfluenceError: a solve has not converged.
    """
    before, after = dict(pretraining.parameters), dict(finetuning.parameters)

    def first(p: Values) -> Tensor:
        return pretraining.losses(p).mean() + pretraining.penalty(p)

    def second(v: Values, p: Values) -> Tensor:
        near = sum(((v[name] - p[name]).square().sum() for name in v if name in p), torch.zeros(()))
        return finetuning.losses(p | v).mean() + finetuning.penalty(v) + proximity * near

    of_after = jacrev(lambda v: queries(before | v))(after)  # [m, ...]
    s = _solve(lambda v: second(v, before), after, of_after, tolerance)
    seen = jacrev(lambda p: queries(p | after))(before)
    r = _carried(second, after, before, s, seen)
    t = _solve(first, before, r, tolerance)
    return StageInfluence(
        _along(pretraining.losses, before, t), _along(lambda v: finetuning.losses(before | v), after, s)
    )


def _solve(objective: Callable[[Values], Tensor], at: Values, gradients: Gradients, tolerance: float) -> Values:
    """Inverse Hessian of an objective times gradients, [m, ...] of each parameter."""

    def one(v: Gradients) -> Gradients:
        found: Values = _derivative(grad(objective), at, v)
        return found

    found = conjugate_gradients(vmap(one), gradients, tolerance=tolerance, limit=LIMIT)
    return dict(found.solved)


def _carried(
    objective: Callable[[Values, Values], Tensor], after: Values, before: Values, s: Values, seen: Gradients
) -> Values:
    """What the queries depend on the pre-trained parameters by, themselves and through fine-tuning, [m, ...]."""

    def one(v: Values) -> Values:
        return _derivative(lambda values: grad(objective, 1)(values, before), after, v)

    through = vmap(one)(s)
    return {name: direct - through[name] for name, direct in seen.items()}


def _along(losses: Callable[[Values], Tensor], at: Values, directions: Values) -> Tensor:
    """Derivatives of n losses in m directions over n, [n, m]."""
    found: Tensor = vmap(lambda v: _derivative(losses, at, v), out_dims=1)(directions)
    return found / len(found)


def _derivative(function: Callable[[Values], T], at: Values, direction: Gradients) -> T:
    """Of a function, in the dtype of where it is taken."""
    along = {name: direction[name].to(value) for name, value in at.items()}
    found: T = jvp(function, (at,), (along,))[1]
    return found
