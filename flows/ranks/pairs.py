"""Scores of some points against every query, by one checkpoint or summed over those of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from influence import PairScores, Reading


@dataclass(frozen=True)
class ChunkPairs:
    """Scores of a chunk against every query, and what the last checkpoint's model says about it.

    Attributes:
        blocks: By the configured estimator on the selected blocks.
        head: By exact Gauss-Newton on the head, if it is wanted.
        last: The reading of the last checkpoint.
        by_block: Influence of each block alone on the mean of the queries `[b, blocks]`, if it is wanted.
    """

    blocks: PairScores
    head: PairScores | None
    last: Reading
    by_block: Tensor | None = None


def score_trajectory(scores: Sequence[ChunkPairs]) -> ChunkPairs:
    """Sum the scores of the same points over the checkpoints of one model, in their order."""
    total = scores[0]
    for one in scores[1:]:
        head = None if total.head is None or one.head is None else total.head + one.head
        both = None if total.by_block is None or one.by_block is None else total.by_block + one.by_block
        total = ChunkPairs(total.blocks + one.blocks, head, one.last, both)
    return total
