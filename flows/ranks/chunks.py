"""Train points scored chunk by chunk, and what is known of them only once all chunks are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flows.ranks.attribution import Attribution
from flows.ranks.device import CPU
from flows.ranks.kept import NOTHING, Keep, kept, packed
from flows.ranks.pairs import ChunkPairs, score_trajectory
from flows.ranks.partitioned import in_step
from flows.ranks.points import Points
from flows.ranks.rank import Place
from flows.ranks.shards import ChunkColumns
from influence import (
    ChunkGrid,
    Own,
    Share,
    relative_influence,
    summarize_chunk,
)
from influence.devices import on
from influence.stability import sign_agreement


@dataclass(frozen=True)
class PointScores:
    """One number per point, from all ranks, `[n]` in manifest order, float64.

    Attributes:
        influence: On the mean of the queries.
        influence_se: Its standard error over queries.
        own: Self-influence and squared steps.
    """

    influence: Tensor
    influence_se: Tensor
    own: Own


def score_chunks(
    attributions: Sequence[Attribution], queries: Points, grid: ChunkGrid, place: Place, keep: Keep = NOTHING
) -> dict[int, ChunkColumns]:
    """This rank's chunks of the train set.

    Args:
        attributions: Of the checkpoints of one model, in their order, prepared.
        queries: The query set.
        grid: Cuts the train set.
        place: This process.
        keep: Where each chunk is kept as soon as it is known.
    """
    last, mine = attributions[-1], Share(place.index, place.world).of(len(grid))
    known = {chunk: kept(keep, _name(chunk), ChunkColumns) for chunk in mine}
    chunks = {chunk: columns for chunk, columns in known.items() if columns is not None}
    missing = [chunk for chunk in mine if chunk not in chunks]
    if last.split:
        missing = sorted(chunk for part in place.gather(missing) for chunk in part)
    for chunk, counts in in_step(missing, place, last.together):
        place.progress("scoring", len(chunks), len(mine))
        columns = _score_chunk(attributions, queries, chunk)
        if counts and last.owns(chunk):
            keep.write(_name(chunk), packed(columns))
            chunks[chunk] = columns
    place.progress("gathering the scores", 0, 1)
    return dict(sorted(chunks.items()))


def _name(chunk: int) -> str:
    return f"chunk-{chunk:05d}"


def _score_chunk(attributions: Sequence[Attribution], queries: Points, chunk: int) -> ChunkColumns:
    found = [one.score_chunk(chunk) for one in attributions]
    attributions[-1].check_losses(chunk, found[-1].last)
    columns = _columns(found, attributions[-1], queries, attributions[-1].turn_over(chunk))
    if not attributions[-1].balances:
        return columns
    inner = torch.stack([one.products(pairs.last) for one, pairs in zip(attributions, found, strict=True)]).sum(0)
    return replace(columns, balance=attributions[-1].balance(chunk, inner))


def _columns(found: Sequence[ChunkPairs], last: Attribution, queries: Points, turn_over: Tensor | None) -> ChunkColumns:
    pairs = score_trajectory(found)
    classes, labels = (pairs.last.logits.shape[1], queries.labels) if pairs.last.of_tokens is None else (0, None)
    columns = ChunkColumns(
        scores=summarize_chunk(pairs.blocks, labels, classes),
        head=None if pairs.head is None else summarize_chunk(pairs.head, labels, classes),
        cheap=pairs.last.signals,
        grand=last.gradient_norms(pairs.last),
        agreement=sign_agreement(torch.stack([one.blocks.influence.mean(1) for one in found])),
        turn_over=turn_over,
        by_block=pairs.by_block,
    )
    return on(CPU, columns)


def gather(chunks: Mapping[int, ChunkColumns], points: Points, grid: ChunkGrid, place: Place) -> PointScores:
    """The scores of all ranks; every rank must call this together."""
    gathered = torch.zeros(4, len(points), dtype=torch.float64)
    for chunk, columns in chunks.items():
        scores = columns.scores
        step = scores.own.squared_step
        assert step is not None  # pairs are scored with it
        rows = torch.as_tensor(grid.rows(chunk))
        gathered[:, rows] = torch.stack([scores.influence, scores.influence_se, scores.own.self_influence, step])
    place.sum(gathered)
    return PointScores(gathered[0], gathered[1], Own(gathered[2], gathered[3]))


def relative_columns(scores: PointScores, points: Points) -> dict[str, Tensor]:
    """Relative influence in its four modes, by column."""
    relative = relative_influence(scores.influence, scores.own, int(points.in_train.sum()))
    return {
        "relative_theta": relative.theta,
        "relative_l": relative.l,
        "relative_self": relative.own,
        "relative_share": relative.share,
    }
