"""Where in their texts proposed points carry their influence, for workloads with `tokens`.

The scoring keeps of each checkpoint what a point's gradient is multiplied by to give its influence, as many numbers as
the blocks have parameters. Once it is known which points are proposed, the preview reads the first of them again, each
by itself, and splits their influence over their positions (influence/positions.py).
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor, nn

from flows.asking import TEXTS, task_of
from flows.config import Config
from flows.plans import DIRECTIONS, PreviewPlan
from flows.ranks.attribution import Attribution
from flows.ranks.kept import Keep, Kept
from flows.ranks.points import Points
from flows.ranks.precision import in_precision
from flows.ranks.rank import Place
from flows.ranks.weights import load_weights
from flows.relabeling import Source
from flows.workload import Workload
from influence import Blocks, PositionInfluence, Reader, direction, position_influence, select
from influence.factored import Gradients
from storage import score_store
from storage.points import PointId, id_array


def has_positions(config: Config, workload: Workload) -> bool:
    """Whether influence can be told by position: compressed or partitioned it is not had by positions."""
    scoring = config.scoring
    return hasattr(workload, "tokens") and scoring.compression is None and scoring.placement != "partitioned"


def blocks_in(model: nn.Module, names: Container[str]) -> Blocks:
    """Blocks of a model by name, a table and the layer that shares its weight as the one that they were scored as."""
    return select(model, lambda found: tuple(block for block in found if block.name in names))


def keep_direction(attribution: Attribution, checkpoint: str, queries: Points, points: int, keep: Keep) -> None:
    """Keep the direction of a checkpoint; every rank must call this together.

    Args:
        attribution: Fitted.
        checkpoint: Its name.
        queries: The query set.
        points: In training.
        keep: Where.
    """
    parts = torch.arange(len(queries)).split(TEXTS)  # whatever has positions may have as many as a language model

    def batches() -> Iterator[tuple[Any, Tensor]]:
        for part in attribution.reads(len(parts)):
            yield queries.take(parts[part]), torch.ones(len(parts[part]))

    own = direction(attribution.curvature, attribution.total(batches()), len(queries), points)
    whole = attribution.joined({name: one[0] for name, one in own.items()})
    if attribution.owns(0):
        keep.write(f"{DIRECTIONS}/{checkpoint}", {name: one.float() for name, one in whole.items()})


def tell_positions(
    plan: PreviewPlan, workload: Workload, points: Points, source: Source, place: Place
) -> pa.Table | None:
    """Influence of the points to be shown by position, summed over the checkpoints; None where it cannot be told.

    Args:
        plan: Names the points and checkpoints.
        workload: Gives the strings of a point's positions.
        points: The train set.
        source: Its batches with the labels in force.
        place: For the progress.

    Returns:
        By point_id: `positions`, a list, and `rest`, of the blocks that have none; nats.
    """
    keep = Kept(score_store.parts(plan.scores, plan.inputs_digest))
    directions = {path: keep.read(f"{DIRECTIONS}/{path.name}") for path in plan.checkpoints}
    lengths, sums = [len(_tokens(workload, point)) for point in plan.shown], list[PositionInfluence]()
    for done, (checkpoint, along) in enumerate(directions.items()):
        if along is None:  # an earlier preview has cleared it: of points that were not shown then nothing is told
            return None
        place.progress("telling positions", done, len(directions))
        model = workload.model().to(place.device)
        load_weights(model, checkpoint)
        in_precision(model, plan.config.scoring.precision)
        found = _split(model, workload, along, _batches(points, source, plan.shown), lengths)
        sums = [one + more for one, more in zip(sums, found)] if sums else found
    return pa.table(
        {
            "point_id": id_array(plan.shown),
            "positions": pa.array([one.positions[0].tolist() for one in sums], pa.list_(pa.float64())),
            "rest": pa.array([float(one.rest) for one in sums], pa.float64()),
        }
    )


def _tokens(workload: Any, point: PointId) -> Sequence[str]:
    tokens: Sequence[str] = workload.tokens(point)
    return tokens


def _batches(points: Points, source: Source, shown: Sequence[PointId]) -> Iterator[Any]:
    """Of one point each, so that none is padded to the length of another."""
    at = {point: place for place, point in enumerate(points.ids)}
    for point in shown:
        yield source.take(points.rows[[at[point]]])


def _split(
    model: nn.Module, workload: Workload, along: Gradients, batches: Iterator[Any], lengths: Sequence[int]
) -> list[PositionInfluence]:
    blocks = blocks_in(model, along)
    directions = {name: one[None] for name, one in along.items()}
    with Reader(model, task_of(workload), blocks) as reader:
        return [
            position_influence(reader.losses(batch).losses, directions, blocks, length)
            for batch, length in zip(batches, lengths)
        ]
