"""A chunk's scores as a row group of the score store: one row per point, in manifest order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import torch
from torch import Tensor

from flows.ranks.points import Points
from influence import CheapSignals, ChunkScores, TopQueries, memorization_labels

TOP_QUERIES = pa.list_(pa.struct([("query_id", pa.string()), ("influence", pa.float64())]))


@dataclass(frozen=True)
class ChunkColumns:
    """What one chunk's points have of their own."""

    scores: ChunkScores
    head: ChunkScores | None
    cheap: CheapSignals
    grand: Tensor
    agreement: Tensor
    turn_over: Tensor | None
    by_block: Tensor | None
    balance: Tensor | None = None


def shard_table(
    points: Points,
    queries: Points,
    blocks: Sequence[str],
    places: range,
    chunk: ChunkColumns,
    originals: Tensor,
    relative: Mapping[str, Tensor],
    whole: Mapping[str, Tensor],
) -> pa.Table:
    """The rows of one chunk.

    Args:
        points: The train set.
        queries: The query set, whose ids the strongest queries are named by.
        blocks: Names of those that were scored.
        places: The chunk's places in the manifest.
        chunk: Its own columns.
        originals: Place of the point that each point is an exact copy of, -1 for none `[n]`.
        relative: Relative influence by column, each `[n]` in manifest order.
        whole: Other columns that are known only once all points are.
    """
    at = torch.as_tensor(places)
    scores, cheap = chunk.scores, chunk.cheap
    ids, repeated = points.manifest.table["point_id"].combine_chunks(), originals[at].numpy()
    columns: dict[str, pa.Array] = {
        "point_id": ids.take(pa.array(at.numpy())),
        "in_train": pa.array(points.in_train[at].numpy()),
        "loss": _numbers(cheap.loss),
        "margin": _numbers(cheap.margin),
        "predicted": pa.nulls(len(at), pa.int32()) if cheap.predicted is None else _integers(cheap.predicted),
        "label": _integers(points.labels[at]),
    }
    group = points.manifest.table["group"]
    if group.null_count < len(group):
        columns["group"] = group.combine_chunks().take(pa.array(at.numpy()))
    columns["copy_of"] = ids.take(pa.array(repeated, mask=repeated < 0))
    columns |= {"influence": _numbers(scores.influence), "influence_se": _numbers(scores.influence_se)}
    for label in range(scores.by_class.shape[1]):
        columns[f"influence_class_{label}"] = _numbers(scores.by_class[:, label])
    if chunk.by_block is not None:
        columns |= {f"influence_block_{block}": _numbers(one) for block, one in zip(blocks, chunk.by_block.T)}
    columns["self_influence"] = _numbers(scores.own.self_influence)
    columns["classification_influence"] = _numbers(scores.classification_influence)
    columns |= {name: _numbers(values[at]) for name, values in relative.items()}
    columns["agreement"] = _numbers(chunk.agreement)
    columns["memorization"] = pa.array(memorization_labels(scores.influence, scores.influence_se))
    signals = {"confidence": cheap.confidence, "entropy": cheap.entropy, "el2n": cheap.el2n, "grand": chunk.grand}
    columns |= {f"signal_{name}": _numbers(values) for name, values in signals.items()}
    if chunk.turn_over is not None:
        columns["signal_turn_over"] = _numbers(chunk.turn_over)
    if chunk.head is not None:
        columns["signal_influence_head"] = _numbers(chunk.head.influence)
        columns["signal_self_influence_head"] = _numbers(chunk.head.own.self_influence)
    for name, values in whole.items():
        part = values[at]
        columns[name] = _numbers(part) if part.is_floating_point() else _integers(part)
    if chunk.balance is not None:
        columns["balance"] = _numbers(chunk.balance)
    columns["top_queries"] = _top_queries(scores.helpful, scores.harmful, [str(query) for query in queries.ids])
    return pa.table(columns)


def _integers(values: Tensor) -> pa.Array:
    return pa.array(values.numpy(), pa.int32(), mask=(values < 0).numpy())  # -1 stands for none


def _numbers(values: Tensor) -> pa.Array:
    return pa.array(values.double().numpy(), pa.float64(), from_pandas=True)  # NaN, no value, becomes null


def _top_queries(helpful: TopQueries, harmful: TopQueries, ids: list[str]) -> pa.Array:
    index = torch.cat([helpful.index, harmful.index.flip(1)], 1).tolist()  # most helpful first, most harmful last
    influence = torch.cat([helpful.influence, harmful.influence.flip(1)], 1).tolist()
    rows = [
        [{"query_id": ids[query], "influence": value} for query, value in zip(queries, values) if query >= 0]
        for queries, values in zip(index, influence)
    ]
    return pa.array(rows, TOP_QUERIES)
