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
from math import inf, isfinite

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
        curvature: its passes over; fitted on readings of the train points at each of the segment's checkpoints.
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
    if not 0 <= weight_decay < inf:
        raise InfluenceError(f"weight_decay {weight_decay}: give at least 0")
    if not segments:
        raise InfluenceError("no segment given: cut the training into at least one")
    for segment in segments:
        segment.curvature.refuse_unfitted()
        if queries.keys() != segment.curvature.shapes.keys():
            known = ", ".join(segment.curvature.blocks)
            raise InfluenceError(f"gradients of {', '.join(queries)} given, a segment was fitted on {known}")
    passed: Gradients = queries
    met: list[Gradients] = []
    for segment in reversed(segments):
        both = {name: _filtered(segment, name, one, weight_decay) for name, one in passed.items()}
        met.append({name: one for name, (one, _) in both.items()})
        passed = {name: one for name, (_, one) in both.items()}
    return met[::-1]


def unrolled_influence(checkpoints: Sequence[Sequence[Factors]], met: Sequence[Gradients], points: int) -> Tensor:
    """Influence of B train points on k queries, [B, k], float64, nats.

    Args:
        checkpoints: factors of the points' losses at each checkpoint of each segment.
        met: of `unroll`.
        points: n.
    """
    if points < 1 or not checkpoints or not all(checkpoints):
        raise InfluenceError(f"{points} points: give at least one, and at least one checkpoint of each segment")
    return add_up(
        _dots(factors, queries) / (len(inside) * points)
        for inside, queries in zip(checkpoints, met, strict=True)
        for factors in inside
    )


def _dots(factors: Factors, queries: Gradients) -> Tensor:
    return total(factors, lambda name, factor: dots(factor, queries[name]))


def _filtered(segment: Segment, name: str, gradients: Tensor, weight_decay: float) -> tuple[Tensor, Tensor]:
    """R V and S V of k gradients of a block, [k, o, i] each."""
    block = segment.curvature.state[name]
    inputs = None if block.inputs is None else block.inputs.basis
    basis = Eigenbasis.of(inputs, block.outputs.basis, block.eigenvalues.value, weight_decay, None).like(gradients)
    times = segment.horizon * basis.damped  # tau (Lambda + w), [o, i]
    turned = basis.turn(gradients)
    return (
        _turned_back(basis, turned * (segment.horizon * _mean_decay(times))),
        _turned_back(basis, turned * (-times).exp()),
    )


def _turned_back(basis: Eigenbasis, turned: Tensor) -> Tensor:
    """Qs V Qa', [k, o, i]."""
    back = products(basis.outputs, turned)
    return back if basis.inputs is None else product(back, basis.inputs.T)


def _mean_decay(times: Tensor) -> Tensor:
    """(1 - exp(-t)) / t, which is 1 at t = 0."""
    return torch.where(times > 0, -torch.expm1(-times) / times, 1.0)
