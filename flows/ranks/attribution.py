"""Influence of a chunk of train points on all queries, summed over the checkpoints of one model.

Two curvatures from the same readings: the configured estimator on the selected blocks, and exact damped Gauss-Newton on
the head alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from flows.estimators import ESTIMATORS, damping_of, selections
from flows.plans import ScorePlan
from flows.ranks.points import Points
from flows.ranks.rank import Rank
from flows.workload import Workload, check_losses
from influence import (
    Blocks,
    ChunkGrid,
    Curvature,
    FactorCache,
    Fisher,
    GaussNewton,
    PairScorer,
    PairScores,
    Queries,
    Reader,
    Reading,
    Share,
    Task,
    check_cross_entropy,
    each,
    fit,
    head,
    select,
    subset,
)
from storage.files import JSON

QUERY_BATCH = 256
MEGABYTE = 2**20


@dataclass(frozen=True)
class ChunkPairs:
    """Scores of a chunk against every query, and what the last checkpoint's model says about it.

    Attributes:
        blocks: By the configured estimator on the selected blocks.
        head: By exact Gauss-Newton on the head, if it is wanted.
        last: The reading of the last checkpoint.
    """

    blocks: PairScores
    head: PairScores | None
    last: Reading


class Attribution:
    """The curvatures and solved queries of one checkpoint; a context manager, open while it is used."""

    def __init__(self, model: nn.Module, workload: Workload, plan: ScorePlan, points: Points, share: Share) -> None:
        config = plan.config.scoring
        self.blocks = select(model, *selections(config.blocks))
        self.head = head(model)
        self.curvature: Curvature = ESTIMATORS[config.estimator].build(self.blocks, share)
        self.exact = GaussNewton([self.head]) if config.exact_head else None
        self._plan, self._points, self._share = plan, points, share
        self._grid = ChunkGrid(len(points), config.chunk)
        self._model, self._workload, self._task = model, workload, Task[Any](workload.logits, workload.labels)
        self._open = ExitStack()

    def __enter__(self) -> Attribution:
        config = self._plan.config.scoring
        both: Blocks = self.blocks if self.head in self.blocks or self.exact is None else (*self.blocks, self.head)
        self._reader = self._open.enter_context(
            Reader(
                self._model,
                self._task,
                both,
                Fisher(config.fisher, seed=self._plan.config.training.seed),
                self._cache(),
            )
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def fit(self, rank: Rank, phase: str) -> None:
        """Accumulate the curvatures over this rank's chunks and sum them over the ranks."""
        config, horizon = self._plan.config, self._plan.horizon
        exact = () if self.exact is None else (self.exact,)
        fit((self.curvature, *exact), lambda: self._pass(rank, phase), rank.sum)
        self.curvature.finish(damping_of(config, config.scoring.estimator, config.scoring.damping, horizon))
        for one in exact:
            one.finish(damping_of(config, "dense", config.scoring.head_damping, horizon))

    def _pass(self, rank: Rank, phase: str) -> Iterator[tuple[Reading, Tensor]]:
        mine = self._share.of(len(self._grid))
        for done, chunk in enumerate(mine):
            rank.progress(phase, done, len(mine))
            places = self._grid.rows(chunk)
            at = torch.as_tensor(places)
            with self._points.named(places):
                reading = self._reader.train(self._points.take(places), chunk, self._points.keys[at])
            yield reading, self._points.in_train[at]

    def prepare(self, queries: Points) -> None:
        """Solve the gradients of every query."""
        points = int(self._points.in_train.sum())
        held = each(self._read_queries(queries), len(queries))
        self._scorer = PairScorer(self.curvature, _on(held, self.curvature), points)
        self._head_scorer = None if self.exact is None else PairScorer(self.exact, _on(held, self.exact), points)

    def _read_queries(self, queries: Points) -> Iterator[Reading]:
        for places in torch.arange(len(queries)).split(QUERY_BATCH):
            with queries.named(places):
                yield self._reader.queries(queries.take(places))

    def score_chunk(self, chunk: int) -> ChunkPairs:
        """Score a chunk of the train set, from the factors that were kept of it, if they were."""
        places = self._grid.rows(chunk)
        with self._points.named(places):
            return self._score(self._reader.losses(self._points.take(places), chunk))

    def check_losses(self, chunk: int, reading: Reading) -> None:
        """Refuse losses of a chunk that are not finite, or not the cross-entropy that influence is computed of."""
        places = torch.as_tensor(self._grid.rows(chunk))
        with torch.no_grad():
            losses = self._workload.loss(self._model, self._points.take(places))
        check_losses(losses, places, self._points.ids)
        check_cross_entropy(losses, reading.logits, reading.labels)

    def score_queries(self, queries: Points, places: Tensor) -> ChunkPairs:
        """Score queries as if they were train points."""
        with queries.named(places):
            return self._score(self._reader.losses(queries.take(places)))

    def _score(self, reading: Reading) -> ChunkPairs:
        exact = None if self._head_scorer is None else self._head_scorer.score(subset(reading.losses, [self.head.name]))
        return ChunkPairs(self._scorer.score(subset(reading.losses, self.curvature.blocks)), exact, reading)

    def describe(self) -> dict[str, JSON]:
        """Diagnostics of both curvatures, the resolved damping among them."""
        both = {self._plan.config.scoring.estimator: self.curvature, "head": self.exact}
        return {
            kind: {name: asdict(found) for name, found in curvature.diagnostics().items()}
            for kind, curvature in both.items()
            if curvature is not None
        }

    def _cache(self) -> FactorCache:
        """This checkpoint's part of the rank's budget."""
        budget, models = self._plan.config.scoring.factor_cache, len(self._plan.checkpoints)
        memory, disk = budget.memory * MEGABYTE // models, budget.disk * MEGABYTE // models
        if not disk:
            return FactorCache(memory)
        file = tempfile.TemporaryFile(dir=self._plan.folder.parent)  # noqa: SIM115, closed with the attribution
        return FactorCache(memory, disk, self._open.enter_context(file))


def score_trajectory(scores: Sequence[ChunkPairs]) -> ChunkPairs:
    """Sum the scores of the same points over the checkpoints of one model, in their order."""
    total = scores[0]
    for one in scores[1:]:
        head = None if total.head is None or one.head is None else total.head + one.head
        total = ChunkPairs(total.blocks + one.blocks, head, one.last)
    return total


def _on(queries: Queries, curvature: Curvature) -> Queries:
    return Queries({name: queries.gradients[name] for name in curvature.blocks}, queries.doubt, queries.labels)
