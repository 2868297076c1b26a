"""Where in a sequence a point's influence lies: its sum over the positions of the point, block by block.

With the direction D = (1/n) H^-1 mean_q g_q of a block, the influence of a point on the mean of the queries is

    <D, G> = sum_t g_t' D a_t,

a sum over the positions t at which the block was used. A position of a transformer's layer is a token. What a token
does there depends on the tokens around it, so this is where in the layers the influence arises, not what the loss would
be without the token. Blocks with another number of positions, such as a head on pooled features, have no such split:
their part is the rest. Both together are the influence itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from influence.blocks import Block
from influence.curvature.base import Curvature
from influence.factored import Factor, Factors, Gradients, dots
from influence.layouts import EmbeddingLayout, TableLayout


@dataclass(frozen=True)
class PositionInfluence:
    """Influence of B points, by position; add those of several checkpoints.

    Attributes:
        positions: nats, positive = helpful, [B, T], float64.
        rest: of the blocks that have no such positions, [B], float64.
    """

    positions: Tensor
    rest: Tensor

    def __add__(self, other: "PositionInfluence") -> "PositionInfluence":
        return PositionInfluence(self.positions + other.positions, self.rest + other.rest)


def direction(curvature: Curvature, gradient: Gradients, queries: int, points: int) -> Gradients:
    """What the gradient of a point is multiplied by to give its influence, block name to [1, o, i].

    Args:
        curvature: finished.
        gradient: of the sum of the queries' losses (`removal.summed`).
        queries: m, their number.
        points: n, the number of points in the train set.
    """
    return {name: solved / (queries * points) for name, solved in curvature.solve(gradient).items()}


def position_influence(
    losses: Factors, directions: Gradients, blocks: Sequence[Block], positions: int
) -> PositionInfluence:
    """Split the influence of B points.

    Args:
        losses: factors of the points' losses on the blocks.
        directions: of the same blocks, block name to [1, o, i].
        blocks: that the factors are of.
        positions: T.
    """
    first = next(iter(losses.values()))
    at = first.g.new_zeros(len(first), positions, dtype=torch.float64)
    rest = first.g.new_zeros(len(first), dtype=torch.float64)
    for block in blocks:
        factor = losses[block.name]
        along = directions[block.name].to(factor.g)
        if _in_order(block) and factor.a.shape[1] == positions:
            at += _by_position(factor, along)
        else:
            rest += dots(factor, along)[:, 0].double()
    return PositionInfluence(at, rest)


def position_counts(losses: Factors, blocks: Sequence[Block]) -> set[int]:
    """How many positions the blocks have that have any, in the batch that the factors are of."""
    return {losses[block.name].a.shape[1] for block in blocks if _in_order(block)}


def _in_order(block: Block) -> bool:
    """Whether the rows of a block's factors are positions of its input; others' are columns of the gradient."""
    small = isinstance(block.layout, EmbeddingLayout) and not isinstance(block.layout, TableLayout)
    return not block.layout.free or small


def _by_position(factor: Factor, along: Tensor) -> Tensor:
    """[B, T]; each position taken for a point of its own."""
    single = Factor(factor.a.flatten(0, 1)[:, None], factor.g.flatten(0, 1)[:, None])
    return dots(single, along)[:, 0].double().view(factor.a.shape[:2])
