"""Influence of a chunk of train points on all queries, summed over the checkpoints of one model.

Two curvatures on the same gradients: EK-FAC on the selected blocks, and exact damped Gauss-Newton on the head alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from flows.config import DampingConfig
from flows.plans import ScorePlan
from flows.ranks.points import Points
from flows.ranks.rank import Rank
from flows.workload import Workload
from influence import (
    EKFAC,
    ChunkGrid,
    Damping,
    FactorSource,
    HeadGaussNewton,
    PairScores,
    Scorer,
    Share,
    head,
    head_outputs,
    label_factors,
    select,
)
from storage.files import JSON

QUERY_BATCH = 256


@dataclass(frozen=True)
class ChunkPairs:
    """Scores of a chunk against every query, and what the last checkpoint's model says about it.

    Attributes:
        blocks: EK-FAC on the selected blocks.
        head: Exact Gauss-Newton on the head, if it is wanted.
        logits: Of the last checkpoint `[b, C]`.
    """

    blocks: PairScores
    head: PairScores | None
    logits: Tensor


class Attribution:
    """The curvatures and preconditioned queries of one checkpoint; open `source` while it is used."""

    def __init__(self, model: nn.Module, workload: Workload, plan: ScorePlan, points: Points, share: Share) -> None:
        config = plan.config.scoring
        self.blocks = select(model, config.blocks)
        self.head = head(model)
        both = self.blocks if self.head in self.blocks else (*self.blocks, self.head)
        self.source = FactorSource(model, both)
        self.ekfac = EKFAC(self.blocks, share)
        self.exact = HeadGaussNewton(self.head) if config.exact_head else None
        self._head_scorer: Scorer | None = None
        self._workload, self._plan, self._points, self._share = workload, plan, points, share
        self._grid = ChunkGrid(len(points), config.chunk)

    def fit(self, rank: Rank, phase: str) -> None:
        """Accumulate both curvatures over this rank's chunks and sum them over the ranks."""
        mine = self._share.of(len(self._grid))
        for turn in range(self.ekfac.passes):
            for done, chunk in enumerate(mine):
                rank.progress(phase, turn * len(mine) + done, self.ekfac.passes * len(mine))
                self._accumulate(self._grid.rows(chunk), first=turn == 0)
            self.ekfac.reduce(rank.sum)
        self.ekfac.finish(self._damping(self._plan.config.scoring.damping))
        if self.exact is not None:
            self.exact.reduce(rank.sum)
            self.exact.finish(self._damping(self._plan.config.scoring.head_damping))

    def _accumulate(self, places: range, *, first: bool) -> None:
        weights = self._points.in_train[torch.as_tensor(places)]
        with self._points.named(places):
            logits = self.source.forward(self._workload.logits, self._points.take(places))
            if first and self.exact is not None:
                self.exact.accumulate(head_outputs(self.source, self.head, logits), weights)
            factors = label_factors(self.source, logits)
        self.ekfac.accumulate({block.name: factors[block.name] for block in self.blocks}, weights)

    def prepare(self, queries: Points) -> None:
        """Precondition the loss gradients of every query."""
        points = int(self._points.in_train.sum())
        self._scorer = Scorer(self.ekfac, points=points, queries=len(queries))
        if self.exact is not None:
            self._head_scorer = Scorer(self.exact, points=points, queries=len(queries))
        for places in torch.arange(len(queries)).split(QUERY_BATCH):
            with queries.named(places):
                factors = self.source.pull(self.source.forward(self._workload.loss, queries.take(places)))
            self._scorer.add_queries({block.name: factors[block.name] for block in self.blocks})
            if self._head_scorer is not None:
                self._head_scorer.add_queries({self.head.name: factors[self.head.name]})

    def score(self, points: Points, places: range | Tensor) -> ChunkPairs:
        """Score the points at these places, of the train set or of the queries themselves."""
        batch = points.take(places)
        with points.named(places):
            factors = self.source.pull(self.source.forward(self._workload.loss, batch))
        with torch.no_grad():
            logits = self._workload.logits(self.source.model, batch)
        exact = self._head_scorer
        return ChunkPairs(
            self._scorer.score({block.name: factors[block.name] for block in self.blocks}),
            None if exact is None else exact.score({self.head.name: factors[self.head.name]}),
            logits,
        )

    def describe(self) -> dict[str, JSON]:
        """Diagnostics of both curvatures, the resolved damping among them."""
        both = {"ekfac": self.ekfac, "head": self.exact}
        return {
            kind: {name: asdict(found) for name, found in curvature.diagnostics().items()}
            for kind, curvature in both.items()
            if curvature is not None
        }

    def _damping(self, config: DampingConfig | None) -> Damping:
        if config is None:
            return Damping("absolute", self._plan.config.training.weight_decay)
        if config.kind == "horizon":
            return Damping("horizon", self._plan.horizon, self._plan.config.training.weight_decay)
        assert config.value is not None  # the configuration has checked it
        return Damping(config.kind, config.value)


def score_trajectory(attributions: Sequence[Attribution], points: Points, places: range | Tensor) -> ChunkPairs:
    """Score the points at these places, summed over the checkpoints of one model."""
    total = attributions[0].score(points, places)
    for attribution in attributions[1:]:
        one = attribution.score(points, places)
        head = None if total.head is None or one.head is None else total.head + one.head
        total = ChunkPairs(total.blocks + one.blocks, head, one.logits)
    return total
