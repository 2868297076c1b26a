"""The parameters after a removal, without training: one step of influence, on some blocks.

    theta' = theta + (1/n) H^-1 sum_i w_i g_i,    w_i = 1 for a point that leaves, -1 for one that comes back

First order in the removal, with H of all points (Koh and Liang 2017, arXiv 1703.04730): what it does to the loss of a
query is the sum of the points' influences, to first order in the step. With H of the points that stay it is a step of
Newton's method, exact where losses are quadratic. A relabeling is a point that leaves with one label and comes with
another. Parameters outside the blocks stay as they are.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from influence.blocks import Block
from influence.curvature.base import Curvature
from influence.errors import InfluenceError
from influence.factored import Factors, Gradients, add_weighted
from influence.layouts import AnyLayout, EmbeddingLayout, TransposedLayout


def summed(readings: Iterable[tuple[Factors, Tensor]]) -> Gradients:
    """sum_i w_i g_i, block name to [1, o, i], float64.

    Args:
        readings: factors of the losses of some points, with their weights [B].
    """
    sums: dict[str, Tensor] = {}
    for factors, weights in readings:
        for name, factor in factors.items():
            if name not in sums:
                sums[name] = factor.g.new_zeros(factor.shape, dtype=torch.float64)
            add_weighted(factor, sums[name], weights.to(factor.g))
    return {name: total[None] for name, total in sums.items()}


def influence_step(curvature: Curvature, gradients: Gradients, points: int) -> Gradients:
    """What the parameters move by, block name to [o, i].

    Args:
        curvature: finished.
        gradients: of the points that leave, `summed`.
        points: n, also where the curvature is that of fewer.
    """
    if points < 1:
        raise InfluenceError(f"{points} train points: give the number of those that the curvature is the mean of")
    return {name: solved[0] / points for name, solved in curvature.solve(gradients).items()}


def move(blocks: Iterable[Block], step: Gradients) -> None:
    """Add a step to the parameters of the blocks that it has, in place.

    Args:
        blocks: `select`ed, so that a table and a layer that share a weight are one.
        step: block name to [o, i].

    Raises:
        InfluenceError: the step of a block has another shape than the block.
    """
    with torch.no_grad():
        for block in blocks:
            if block.name in step:
                _move(block, step[block.name])


def _move(block: Block, step: Tensor) -> None:
    if step.shape != block.weight_shape:  # a transpose has as many entries, and would be reshaped into nonsense
        raise InfluenceError(
            f"block {block.name!r} takes a step {list(block.weight_shape)}, given is {list(step.shape)}: give the "
            "blocks that the step was made of, by `select`"
        )
    own = dict(block.module.named_parameters(recurse=False))
    if isinstance(block.layout, AnyLayout):
        parts = list(step.flatten().split([value.numel() for value in own.values()]))
    elif isinstance(block.layout, EmbeddingLayout):
        parts = [step.T]
    elif isinstance(block.layout, TransposedLayout):
        parts = [step[:, :-1].T, step[:, -1]]
    else:  # rows of the weight, then the bias as one more input
        parts = [step[:, : step.shape[1] - 1], step[:, -1]] if "bias" in own else [step]
    for value, part in zip(own.values(), parts, strict=True):
        value.add_(part.reshape(value.shape).to(value))
