"""Segmented unrolling (SOURCE; Bae et al. 2024, arXiv 2405.12186): influence through a training, from few checkpoints.

A training is cut into segments. In segment l the curvature H_l and the gradients gbar_l, means over its checkpoints,
are taken to stand still for a horizon tau_l = sum of its learning rates / (1 - momentum). What gradient descent does to
a change of its gradient is then a filter of eigenvalues:

    T[i, q] = (1/n) g_q' sum_l [prod_{l' > l} S_l'] R_l gbar_l(i)     S = exp(-tau H)     R = (I - exp(-tau H)) H^-1

The later segment's S stands to the left. R is tau where H is flat and H^-1 where the segment is long: one long segment
is influence without damping. Weight decay adds to every eigenvalue.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from influence.curvature.eigenbasis import Eigenbasis
from influence.curvature.joint import add_up
from influence.curvature.kronecker import KFAC
from influence.errors import InfluenceError
from influence.factored import Factors, Gradients, dots, total
from influence.matmul import product, products


@dataclass(frozen=True)
class Segment:
    """A part of a training in which the curvature stands still.

    Attributes:
        curvature: finished; fitted on readings of the train points at each of the segment's checkpoints.
        horizon: sum of its learning rates / (1 - momentum).
    """

    curvature: KFAC
    horizon: float

    def __post_init__(self) -> None:
        if not (isfinite(self.horizon) and self.horizon > 0):
            raise InfluenceError(f"horizon {self.horizon}: give the segment's sum of learning rates / (1 - momentum)")


def unroll(segments: Sequence[Segment], queries: Gradients, weight_decay: float = 0.0) -> list[Gradients]:
    """Query gradients as each segment's train gradients are to meet them.

    Args:
        segments: in the order of training.
        queries: gradients of k query losses in the final model, name -> [k, o, i].
        weight_decay: of the trainer, coupled to the gradient.

    Returns:
        For each segment, name -> [k, o, i].
    """
    if weight_decay < 0:
        raise InfluenceError(f"weight_decay {weight_decay}: give at least 0")
    for segment in segments:
        segment.curvature.solve({name: one[:0] for name, one in queries.items()})  # refuses what is not fitted
    passed: Gradients = queries
    met: list[Gradients] = []
    for segment in reversed(segments):
        bases = {name: _basis(segment.curvature, name, weight_decay).like(one) for name, one in passed.items()}
        times = {name: segment.horizon * basis.damped for name, basis in bases.items()}  # tau (Lambda + w), [o, i]
        met.append(
            {
                name: _filter(bases[name], one, segment.horizon * _mean_decay(times[name]))
                for name, one in passed.items()
            }
        )
        passed = {name: _filter(bases[name], one, (-times[name]).exp()) for name, one in passed.items()}
    return met[::-1]


def unrolled_influence(checkpoints: Sequence[Sequence[Factors]], met: Sequence[Gradients], points: int) -> Tensor:
    """Influence of B train points on k queries, [B, k], float64, nats.

    Args:
        checkpoints: factors of the points' losses at each checkpoint of each segment.
        met: of `unroll`.
        points: n.
    """
    return add_up(
        _dots(factors, queries) / (len(inside) * points)
        for inside, queries in zip(checkpoints, met, strict=True)
        for factors in inside
    )


def _dots(factors: Factors, queries: Gradients) -> Tensor:
    return total(factors, lambda name, factor: dots(factor, queries[name]))


def _basis(curvature: KFAC, name: str, weight_decay: float) -> Eigenbasis:
    block = curvature.state[name]
    inputs = None if block.inputs is None else block.inputs.basis
    return Eigenbasis.of(inputs, block.outputs.basis, block.eigenvalues.value, weight_decay, None)


def _mean_decay(times: Tensor) -> Tensor:
    """(1 - exp(-t)) / t, which is 1 at t = 0."""
    return torch.where(times > 0, -torch.expm1(-times) / times, 1.0)


def _filter(basis: Eigenbasis, gradients: Tensor, weights: Tensor) -> Tensor:
    """A function of the curvature, by its values [o, i] at the eigenvalues, times gradients [k, o, i]."""
    back = products(basis.outputs, basis.turn(gradients) * weights)
    return back if basis.inputs is None else product(back, basis.inputs.T)
