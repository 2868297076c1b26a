"""Points that leave a training between epochs, since the model does better without them: for this training alone.

After the epochs that `training.prune_while_learning` names, the points in training are scored on the head by their
influence on the query set, and the worst go, within the cap and the budgets. All ranks leave out what the first one
chooses. Nothing is drawn, so the training is the same with and without a crash; what was dropped is in its state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import pyarrow as pa
import torch
from torch import Tensor

from flows.config import Config
from flows.plans import Job
from flows.ranks.device import CPU
from flows.ranks.heads import HeadReader
from flows.ranks.order import Order
from flows.ranks.points import Points
from flows.ranks.room import Room
from flows.recipe import horizon
from influence import EKFAC, Damping, Share
from influence.devices import on
from influence.dropping import HeadInfluence, HeadScorer, worst
from storage import drop_store


class Dropping:
    """The drops of one training, the same on every rank.

    Args:
        config: How many leave when, and the budgets.
        job: The model in training.
        reader: Of that model.
        points: The train set as this training sees it.
        queries: The query set.
        dropped: What was dropped before the training was interrupted.

    Attributes:
        dropped: The table of storage/drop_store.py.
        by_step: The rows that left after a step.
    """

    def __init__(
        self,
        config: Config,
        job: Job,
        reader: HeadReader,
        points: Points,
        queries: Points,
        dropped: pa.Table | None,
    ) -> None:
        settings, training = config.training.prune_while_learning, config.training
        assert settings is not None
        self._settings, self._reader, self._points, self._queries = settings, reader, points, queries
        self._active, self._begun = points.in_train.clone(), int(points.in_train.sum())
        self._room = Room(config.pruning, points)
        self._damping = Damping("horizon", horizon(training, job.planned, job.planned), training.weight_decay)
        self.dropped = drop_store.empty(self._points.manifest.table.schema.field("point_id").type)
        self.by_step: dict[int, Tensor] = {}
        if dropped is not None:
            self._take_up(dropped)

    def after(self, order: Order) -> None:
        """Drop what is to be dropped after the last step that was given out; all ranks call this together."""
        most = self._most()
        if most <= 0 or not any(map(self._settings.due, order.ended)):
            return
        found = self._score()
        chosen = torch.full((most,), -1)
        admitted = self._room.admit(worst(found, self._active & self._room.free), self._active)[:most]
        chosen[: len(admitted)] = admitted
        self._reader.rank.broadcast(chosen, 0)
        self._leave(chosen[chosen >= 0], order, found)

    def _score(self) -> HeadInfluence:
        """Influence of the points in training, 0 elsewhere, `[n]`."""
        reader, active = self._reader, self._active.nonzero()[:, 0]
        scorer = HeadScorer(
            EKFAC([reader.head], Share(reader.rank.index, reader.rank.world)),
            lambda: (read for _, read in reader.parts(self._points, active)),
            reader.whole(self._queries),
            len(active),
            self._damping,
            reader.rank.sum,
        )
        mean, error = torch.zeros(2, len(self._points), dtype=torch.float64)
        for places, read in reader.parts(self._points, active):
            found = on(CPU, scorer.score(read))
            mean[places], error[places] = found.mean, found.error
        reader.rank.sum(mean)
        reader.rank.sum(error)
        return HeadInfluence(mean, error)

    def _most(self) -> int:
        """How many may go at once."""
        cap = _share(self._settings.cap, self._begun) - len(self.dropped)
        return min(_share(self._settings.fraction, self._begun), cap)

    def _leave(self, places: Tensor, order: Order, found: HeadInfluence) -> None:
        rows = self._points.rows[places]
        order.drop(rows)
        self._active[places] = False
        self.by_step[order.step] = rows
        count = len(places)
        columns = {
            "point_id": [self._points.ids[place] for place in places.tolist()],
            "step": [order.step] * count,
            "epoch": [order.ended[-1]] * count,
            "influence": found.mean[places].tolist(),
            "influence_se": found.error[places].tolist(),
        }
        self.dropped = pa.concat_tables([self.dropped, pa.table(columns, self.dropped.schema)])

    def _take_up(self, dropped: pa.Table) -> None:
        self.dropped = dropped
        place = {point: place for place, point in enumerate(self._points.ids)}
        places = torch.tensor([place[point] for point in dropped["point_id"].to_pylist()], dtype=torch.int64)
        steps = torch.tensor(dropped["step"].to_pylist(), dtype=torch.int64)
        self._active[places] = False
        self.by_step = {step: self._points.rows[places[steps == step]] for step in steps.unique().tolist()}


class NoDropping:
    """Of a training that keeps its points."""

    dropped: None = None
    by_step: Mapping[int, Tensor] = MappingProxyType({})

    def after(self, order: Order) -> None:
        """Nothing."""


def _share(share: float, count: int) -> int:
    return math.floor(share * count + 1e-9)  # 0.29 * 100 is 28.999…
