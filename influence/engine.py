"""Influence on a plain PyTorch classifier, outside any cycle.

blocks = select(model)
with Influence(model, task, EKFAC(blocks), blocks) as influence:
influence.fit(train, Damping("absolute", 0.1))
scores = influence.pairs(train, queries)  # scores.influence[i, q] < 0: point i harms query q
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Generic

import torch
from torch import Tensor, nn

from influence.blocks import Blocks
from influence.cache import FactorCache
from influence.compression import Compressor, refuse_other_blocks
from influence.curvature.base import Curvature, Damping, Own
from influence.errors import InfluenceError
from influence.fisher import Fisher
from influence.fitting import fit
from influence.queries import each, group_means
from influence.reader import Reader
from influence.reading import Batch, Reading, Task
from influence.scores import GroupScorer, GroupScores, PairScorer, PairScores


class Influence(AbstractContextManager["Influence[Batch]"], Generic[Batch]):
    """One model's influence engine; a context manager, the model is restored on exit.

    Args:
        model: a classifier, or a language model.
        task: how it is asked.
        curvature: not yet fitted.
        blocks: the model's; the curvature is made for them, or for the compressor's.
        fisher: which Fisher roots the curvature is fitted on.
        cache: keeps factors between passes; None keeps nothing.
        compressor: of the blocks' gradients; None leaves them as they are.

    Raises:
        InfluenceError: the curvature was made for other blocks.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task[Batch],
        curvature: Curvature,
        blocks: Blocks,
        fisher: Fisher | None = None,
        cache: FactorCache | None = None,
        compressor: Compressor | None = None,
    ) -> None:
        refuse_other_blocks(curvature, blocks if compressor is None else compressor.blocks)
        self.curvature = curvature
        self._reader = Reader(model, task, blocks, fisher, cache, compressor)
        self._points = 0

    def __enter__(self) -> "Influence[Batch]":
        self._reader.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.__exit__(kind, error, trace)

    def fit(self, train: Iterable[Batch], damping: Damping, keys: Tensor | None = None) -> None:
        """Fit the curvature.

        Args:
            train: batches of the train points, in the same order whenever they are iterated (no shuffling).
            damping: may be changed later by `curvature.finish`.
            keys: one integer per point, [n], int64, that `Fisher("sampled")` draws its labels by, so that they stay a
                point's own in any order; None: its place.

        Raises:
            InfluenceError: there are more or fewer keys than points.
        """
        _refuse_one_shot(train)
        points = sum(len(self._reader.task.labels(batch)) for batch in train)
        own = torch.arange(points) if keys is None else keys
        if len(own) != points:
            raise InfluenceError(f"{len(own)} keys given for {points} train points; give one each")

        def passes() -> Iterator[tuple[Reading, Tensor]]:
            for reading in self._read(train, own):
                yield reading, torch.ones(len(reading.labels))

        self._points = points
        fit([self.curvature], passes)
        self.curvature.finish(damping)

    def pairs(self, train: Iterable[Batch], queries: Iterable[Batch], *, own: bool = True) -> PairScores:
        """Influence of every train point on every query, [n, m].

        Args:
            train: batches of the train points.
            queries: batches of the queries.
            own: whether self-influence is wanted, too; `PCG` solves for every train point for it.
        """
        _refuse_one_shot(queries)
        count = sum(len(self._reader.task.labels(batch)) for batch in queries)
        scorer = PairScorer(self.curvature, each(map(self._reader.queries, queries), count), self._fitted(), own=own)
        parts = [scorer.score(reading.losses) for reading in self._read(train)]
        return PairScores(
            torch.cat([part.influence for part in parts]),
            torch.cat([part.classification for part in parts]),
            Own.join([part.own for part in parts]) if own else None,
        )

    def groups(
        self, train: Iterable[Batch], queries: Iterable[Batch], groups: Tensor, count: int, *, step: bool = False
    ) -> GroupScores:
        """Influence of every train point on the mean of all queries and of each group of them, [n, k].

        Args:
            train: batches of the train points.
            queries: batches of the queries.
            groups: group of each query, in their order, [m], int64 in [0, count).
            count: k.
            step: whether own terms hold the squared step, for relative influence.
        """
        means = group_means(map(self._reader.queries, queries), groups, count)
        scorer = GroupScorer(self.curvature, means, self._fitted(), step=step)
        parts = [scorer.score(reading.losses) for reading in self._read(train)]
        return GroupScores(
            torch.cat([part.influence for part in parts]),
            torch.cat([part.mean for part in parts]),
            Own.join([part.own for part in parts]),
        )

    def _read(self, train: Iterable[Batch], keys: Tensor | None = None) -> Iterator[Reading]:
        """With keys, roots are read, too."""
        seen = 0
        for number, batch in enumerate(train):
            rows = slice(seen, seen + len(self._reader.task.labels(batch)))
            if keys is None:
                yield self._reader.losses(batch, number)
            else:
                yield self._reader.train(batch, number, keys[rows])
            seen = rows.stop

    def _fitted(self) -> int:
        if not self._points:
            raise InfluenceError("the curvature is not fitted: call fit() first")
        return self._points


def _refuse_one_shot(batches: Iterable[Batch]) -> None:
    if isinstance(batches, Iterator):
        raise InfluenceError(
            f"a {type(batches).__name__} can be read once, and several passes are made: give a list, or a DataLoader "
            "that does not shuffle"
        )
