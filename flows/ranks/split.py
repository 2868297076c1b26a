"""Curvature split by blocks: each rank holds that of its own blocks alone, with the queries solved in it.

A block's factors are needed where its curvature is, so each rank then reads every point: what is saved is memory, and
the decompositions are shared out as ever. Influence is a sum over blocks, so only scores are added up.
"""

from __future__ import annotations

from flows.errors import BadInput
from flows.ranks.rank import Place
from influence import Blocks, Own, PairScores, Share


def owned(blocks: Blocks, share: Share) -> Blocks:
    """The blocks of this rank: about as many parameters as those of any other.

    Raises:
        BadInput: There are more ranks than blocks.
    """
    if share.world > len(blocks):
        raise BadInput(
            f"scoring.ranks = {share.world}, and {len(blocks)} blocks to split over them: give at most as many ranks, "
            "or scoring.placement = 'replicated'"
        )
    owners = share.owners([float(block.parameters) for block in blocks])
    return tuple(block for block, owner in zip(blocks, owners) if owner == share.rank)


def added_up(scores: PairScores, place: Place) -> PairScores:
    """Scores on all blocks, from those on each rank's own; every rank must call this together, with the same points."""
    step = scores.own.squared_step
    assert step is not None  # pairs are scored with it
    parts = [scores.influence, scores.classification, scores.own.self_influence, step]
    whole = [part.clone() for part in parts]
    for part in whole:
        place.sum(part)
    return PairScores(whole[0], whole[1], Own(whole[2], whole[3]))
