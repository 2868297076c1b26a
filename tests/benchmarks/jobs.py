"""Our side: what is asked of the engine, apart from what must be there before it is timed or counted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

import torch

from influence import (
    EKFAC,
    Blocks,
    Damping,
    FactorCache,
    Fisher,
    GroupScorer,
    GroupScores,
    Influence,
    PairScores,
    Reader,
    Task,
    by_type,
    cheap_signals,
    grand,
    group_means,
    head,
    relative_influence,
    select,
)
from tests.benchmarks.setups import GROUPS, Batch, Setup, logits

DAMPING = Damping("absolute", 1e-3)
TASK: Task[Batch] = Task(logits, lambda batch: batch[1])
GIB = 1 << 30


@dataclass(frozen=True)
class Job:
    """A setup and how the engine is run on it.

    Attributes:
        setup: what is scored.
        batch: train points at a time.
        fisher: exact expectation over labels, or a sampled label where there are many.
        cut: share of the trace at which eigenbases are cut for self-influence; None: not at all.
    """

    setup: Setup
    batch: int
    fisher: Fisher
    cut: float | None = None

    @property
    def blocks(self) -> Blocks:
        """All linear and convolutional layers."""
        kinds = {type(self.setup.model.get_submodule(name)).__name__ for name in self.setup.blocks}
        return select(self.setup.model, by_type(*kinds))

    @property
    def train(self) -> list[Batch]:
        """Batches of the train points."""
        return list(self.setup.train.batches(self.batch))

    @property
    def queries(self) -> list[Batch]:
        """Batches of the queries."""
        return list(self.setup.queries.batches(self.batch))

    def engine(self, blocks: Blocks, cache: FactorCache | None = None) -> Influence[Batch]:
        """EK-FAC on the blocks, not yet fitted."""
        return Influence(self.setup.model, TASK, EKFAC(blocks, cut=self.cut), blocks, self.fisher, cache)

    @contextmanager
    def fitted(self) -> Iterator[Influence[Batch]]:
        """EK-FAC on all blocks, fitted."""
        with self.engine(self.blocks) as influence:
            influence.fit(self.train, DAMPING)
            yield influence

    def means(self, influence: Influence[Batch]) -> GroupScores:
        """Self-influence, and influence on the mean of all queries."""
        one = torch.zeros(len(self.setup.queries), dtype=torch.int64)
        return influence.groups(self.train, self.queries, one, 1)

    def groups(self, influence: Influence[Batch]) -> GroupScores:
        """Self-influence, and influence on ten groups of queries and on their mean."""
        return influence.groups(self.train, self.queries, self.setup.groups, GROUPS)

    def from_nothing(self, memory: int = GIB, disk: int = 8 * GIB) -> GroupScores:
        """Fit, self-influence, mean and ten groups, with the factors kept within the bytes given."""
        with (
            TemporaryFile(dir=scratch()) as file,
            self.engine(self.blocks, FactorCache(memory, disk, file) if memory else None) as influence,
        ):
            influence.fit(self.train, DAMPING)
            return self.groups(influence)

    def pairs(self, *, own: bool = True) -> PairScores:
        """Fit, every pair, and self-influence if it is wanted; factors are kept on disk, so that memory is small."""
        with (
            TemporaryFile(dir=scratch()) as file,
            self.engine(self.blocks, FactorCache(0, 8 * GIB, file)) as influence,
        ):
            influence.fit(self.train, DAMPING)
            return influence.pairs(self.train, self.queries, own=own)

    @contextmanager
    def head(self) -> Iterator[HeadPass]:
        """EK-FAC on the head alone, fitted."""
        blocks = (head(self.setup.model),)
        with self.engine(blocks) as influence:
            influence.fit(self.train, DAMPING)
        with Reader(self.setup.model, TASK, blocks) as reader:
            yield HeadPass(self, influence, reader)


@dataclass(frozen=True)
class HeadPass:
    """One pass over the points with a fitted head: all scores that its gradients and logits give."""

    job: Job
    influence: Influence[Batch]
    reader: Reader[Batch]

    def __call__(self) -> None:
        """Influence on the mean and on ten groups, own terms, relative influence, signals."""
        job = self.job
        queries = group_means(map(self.reader.queries, job.queries), job.setup.groups, GROUPS)
        scorer = GroupScorer(self.influence.curvature, queries, len(job.setup.train), step=True)
        parts = [self._score(scorer, batch) for batch in job.train]
        own = type(parts[0].own).join([part.own for part in parts])
        relative_influence(torch.cat([part.mean for part in parts]), own, len(job.setup.train))

    def _score(self, scorer: GroupScorer, batch: Batch) -> GroupScores:
        reading = self.reader.losses(batch)
        cheap_signals(reading.logits, reading.labels)
        grand(reading.losses)
        return scorer.score(reading.losses)


def scratch() -> Path:
    """A folder on disk, not in memory, for the factors that are kept."""
    folder = Path(__file__).parents[2] / "build" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
