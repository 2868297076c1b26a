"""Influence of a chunk of train points on all queries, summed over the checkpoints of one model.

Two curvatures from the same readings: the configured estimator on the selected blocks, and exact damped Gauss-Newton on
the head alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cached_property, reduce
from operator import add
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from flows.asking import at_a_time, task_of
from flows.config import Config
from flows.estimators import approximation, damping_of
from flows.ranks.blocks import chosen_blocks
from flows.ranks.device import CPU
from flows.ranks.kept import NOTHING, Keep, keep_fitted, recall
from flows.ranks.pairs import ChunkPairs
from flows.ranks.partitioned import in_step, partitioned
from flows.ranks.points import Points
from flows.ranks.rank import Alone, Place
from flows.ranks.split import added_up, owned
from flows.workload import Workload, check_losses
from influence import (
    Blocks,
    ChunkGrid,
    Diagnostics,
    FactorCache,
    Fisher,
    GaussNewton,
    Queries,
    Reader,
    Reading,
    Share,
    alone,
    each,
    fit,
    grand,
    head,
    share_queries,
    subset,
    summarize,
    summed,
    turn_over_self_influence,
)
from influence.balance import balance, products
from influence.blocks import Shapes, shapes_of
from influence.devices import on
from influence.factored import Gradients
from influence.objective import check_equal
from influence.sharding import WHOLE
from storage.files import JSON

QUERY_BATCH = 64
MEGABYTE = 2**20


@dataclass(frozen=True)
class Setting:
    """What is the same for every checkpoint that is scored.

    Attributes:
        config: The settings.
        energies: Gradient energy of every block, which the configuration may choose blocks by.
        horizon: Sum of the learning rates over the training; None for a model that was trained elsewhere.
        checkpoints: How many share the factor cache.
        folder: Where its file may be.
    """

    config: Config
    energies: Mapping[str, float]
    horizon: float | None
    checkpoints: int
    folder: Path

    @property
    def exact_head(self) -> bool:
        """Whether the head is scored by exact Gauss-Newton too: it is wanted, and its damping is known."""
        scoring = self.config.scoring
        return scoring.exact_head and (scoring.head_damping.kind != "horizon" or self.horizon is not None)


class Attribution:
    """The curvatures and solved queries of one checkpoint; a context manager, open while it is used.

    Attributes:
        blocks: That are scored.
        summary: How much of the model they are.
        head: The last layer.
        together: Whether the model is partitioned, so that each of its passes is one of all ranks.
        split: Whether each rank has the curvature of its own blocks alone, and reads every point for them.
        balances: Whether points are to be balanced: as dear as so many queries more as a chunk has points.
        cache: Of the factors, while it is open.
    """

    def __init__(
        self,
        model: nn.Module,
        workload: Workload,
        setting: Setting,
        points: Points,
        place: Place,
        checkpoint: int = 0,
    ) -> None:
        scoring = setting.config.scoring
        self.blocks = chosen_blocks(model, workload, scoring.blocks, setting.energies)
        self.summary = summarize(model, self.blocks, setting.energies)
        self.head = head(model)
        self._setting, self._points, self._place = setting, points, place
        self._share = Share(place.index, place.world)
        self.split = scoring.placement == "split"
        own = owned(self.blocks, self._share) if self.split else self.blocks
        chosen = approximation(setting.config, own, WHOLE if self.split else self._share, checkpoint)
        self.curvature, self._compressor = chosen.curvature, chosen.compressor
        self.exact = GaussNewton([self.head]) if setting.exact_head else None
        self._grid = ChunkGrid(len(points), scoring.chunk)
        self._model, self._workload, self._task = model, workload, task_of(workload)
        self.together = scoring.placement == "partitioned"
        self.balances = "balanced" in setting.config.pruning.policies
        self._open = ExitStack()

    def __enter__(self) -> Attribution:
        config = self._setting.config
        self.cache = self._cache()
        own = owned(self.blocks, self._share) if self.split else self.blocks
        both: Blocks = own if self.head in own or self.exact is None else (*own, self.head)
        model = self._open.enter_context(partitioned(self._model, both)) if self.together else self._model
        self._reader = self._open.enter_context(
            Reader(
                model,
                self._task,
                both,
                Fisher(config.scoring.fisher, seed=config.training.seed),
                self.cache,
                self._compressor,
            )
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def fit(self, phase: str, keep: Keep = NOTHING, of: str = "") -> None:
        """Accumulate the curvatures over this rank's chunks and sum them over the ranks, unless they are kept.

        Args:
            phase: For the progress, and what they are kept by.
            keep: Where.
            of: Digest of the checkpoint.
        """
        config, horizon = self._setting.config, self._setting.horizon
        exact = () if self.exact is None else (self.exact,)
        fitted = {f"{phase}/blocks": self.curvature, **{f"{phase}/head": one for one in exact}}
        if not recall(fitted, keep, of, self._place):
            fit(tuple(fitted.values()), lambda: self._pass(phase), alone if self.split else self._place.sum)
            self._place.progress("keeping the curvature", 0, 1)
            own = [f"{phase}/blocks"] if self.split else []
            keep_fitted(fitted, keep, of, self._place, own)
        self.curvature.finish(damping_of(config, config.scoring.estimator, config.scoring.damping, horizon))
        for one in exact:
            one.finish(damping_of(config, "dense", config.scoring.head_damping, horizon))

    def _pass(self, phase: str) -> Iterator[tuple[Reading, Tensor]]:
        mine = self.reads(len(self._grid))
        for done, (chunk, counts) in enumerate(in_step(mine, self._place, self.together)):
            self._place.progress(phase, done, len(mine))
            places = self._grid.rows(chunk)
            at = torch.as_tensor(places)
            with self._points.named(places):
                reading = self._reader.train(self._points.take(places), chunk, self._points.keys[at])
            if counts:
                yield reading, self._points.in_train[at]
        self._place.progress("decomposing the curvature", 0, 1)

    def reads(self, count: int) -> range:
        """The items, out of `count` that are dealt to the ranks, that this one reads; of these it `owns` some."""
        return (WHOLE if self.split else self._share).of(count)

    def owns(self, item: int) -> bool:
        """Whether an item is this rank's to keep."""
        return self._share.owns(item)

    def prepare(self, queries: Points) -> None:
        """Solve the gradients of every query; every rank must call this together."""
        parts = torch.arange(len(queries)).split(at_a_time(self._workload, QUERY_BATCH))
        both = (self.curvature,) if self.exact is None else (self.curvature, self.exact)

        def read(part: int) -> Queries:
            self._place.progress("solving the queries", part, len(parts))
            with queries.named(parts[part]):
                return each([self._reader.queries(queries.take(parts[part]))], len(parts[part]))

        sizes, points = [len(part) for part in parts], int(self._points.in_train.sum())
        share, broadcast = (
            (WHOLE, Alone(self._place.progress).broadcast) if self.split else (self._share, self._place.broadcast)
        )
        scorers = share_queries(both, read, sizes, points, share, broadcast)
        self._scorer, self._head_scorer = scorers[0], None if self.exact is None else scorers[1]

    def score_chunk(self, chunk: int) -> ChunkPairs:
        """Score a chunk of the train set, from the factors that were kept of it, if they were."""
        places = self._grid.rows(chunk)
        with self._points.named(places):
            return self._score(self._reader.losses(self._points.take(places), chunk))

    def turn_over(self, chunk: int) -> Tensor | None:
        """Each point's loss in the sub-network that never saw it, less that in its own; None without such masks."""
        training = self._setting.config.training
        if not training.turn_over:
            return None
        places = torch.as_tensor(self._grid.rows(chunk))
        points = [self._points.take(places)]
        keys = self._points.keys[places]
        return turn_over_self_influence(self._model, self._task, training.turn_over, keys, points, training.seed)

    def balance(self, chunk: int, inner: Tensor) -> Tensor:
        """The share at which each point of a chunk goes by the policy `balanced`, from their products, `[b]`."""
        at = torch.as_tensor(self._grid.rows(chunk))
        return balance(inner, [self._points.labels[at], self._points.groups[at]], self._points.in_train[at])

    def products(self, reading: Reading) -> Tensor:
        """In the metric of H^-1, of the gradients of any two points that were read `[b, b]`."""
        found = products(self.curvature, subset(reading.losses, self.curvature.blocks))
        if self.split:
            self._place.sum(found)
        return found.cpu()

    def check_losses(self, chunk: int, reading: Reading) -> None:
        """Refuse losses of a chunk that are not finite, or not the cross-entropy that influence is computed of."""
        places = torch.as_tensor(self._grid.rows(chunk))
        with torch.no_grad():
            losses = self._workload.loss(self._model, self._points.take(places))
        check_losses(losses.cpu(), places, self._points.ids)
        check_equal(losses, reading.signals.loss)

    def score_points(self, points: Points, places: Tensor) -> ChunkPairs:
        """Score some points, queries too, as if they were a chunk of the train set."""
        with points.named(places):
            return self._score(self._reader.losses(points.take(places)))

    def _score(self, reading: Reading) -> ChunkPairs:
        """Where scores, a few numbers for each point, come back to the CPU; what was read of it stays on the device."""
        exact = None if self._head_scorer is None else self._head_scorer.score(subset(reading.losses, [self.head.name]))
        losses = subset(reading.losses, self.curvature.blocks)
        if self._setting.config.scoring.per_block:
            each = [self._scorer.score({name: factor}) for name, factor in losses.items()]
            means = torch.stack([one.influence.mean(1) for one in each], 1)
            return ChunkPairs(on(CPU, reduce(add, each)), on(CPU, exact), reading, means.cpu())
        pairs = self._scorer.score(losses)
        return ChunkPairs(on(CPU, added_up(pairs, self._place) if self.split else pairs), on(CPU, exact), reading)

    def total(self, batches: Iterable[tuple[Any, Tensor]]) -> Gradients:
        """The weighted sum of loss gradients on this rank's blocks; every rank must call this together.

        Args:
            batches: Of this rank (`reads`), with the weights of their points `[B]`.
        """
        read = ((self._reader.losses(batch).losses, weights) for batch, weights in batches)
        found = summed((subset(losses, self.curvature.blocks), weights) for losses, weights in read)
        zeros = self._zeros({name: (1, *shape) for name, shape in self.curvature.shapes.items()})
        sums = {name: zero + found.get(name, 0.0) for name, zero in zeros.items()}
        for one in () if self.split else sums.values():
            self._place.sum(one)
        return sums

    def joined(self, gradients: Gradients) -> Gradients:
        """Of all blocks, `[o, i]` each, where this rank has those of its own; every rank must call this together."""
        if not self.split:
            return gradients
        zeros = self._zeros(shapes_of(self.blocks))
        whole = {name: zero + gradients.get(name, 0.0) for name, zero in zeros.items()}
        for one in whole.values():
            self._place.sum(one)
        return whole

    def _zeros(self, shapes: Shapes) -> Gradients:
        return {
            name: torch.zeros(shape, dtype=torch.float64, device=self._place.device) for name, shape in shapes.items()
        }

    def gradient_norms(self, reading: Reading) -> Tensor:
        """Of the losses, on the blocks that are scored, `[B]`."""
        norms = grand(subset(reading.losses, self.curvature.blocks))
        if not self.split:
            return norms
        squares = norms.square()
        self._place.sum(squares)
        return squares.sqrt()

    @cached_property
    def diagnostics(self) -> Mapping[str, Diagnostics]:
        """Of the configured estimator, once it is fitted; all ranks ask first together."""
        found = self.curvature.diagnostics()
        if not self.split:
            return found
        whole = {name: one for part in self._place.gather(found) for name, one in part.items()}
        return {block.name: whole[block.name] for block in self.blocks}

    def describe(self) -> dict[str, JSON]:
        """Diagnostics of both curvatures, the resolved damping among them."""
        both: dict[str, Mapping[str, Diagnostics]] = {self._setting.config.scoring.estimator: self.diagnostics}
        if self.exact is not None:
            both["head"] = self.exact.diagnostics()
        return {kind: {name: asdict(found) for name, found in each.items()} for kind, each in both.items()}

    def _cache(self) -> FactorCache:
        """This checkpoint's part of the rank's budget; none where ranks read together, and what is kept is not read."""
        if self.together:
            return FactorCache(0)
        budget, models = self._setting.config.scoring.factor_cache, self._setting.checkpoints
        memory, disk = budget.memory * MEGABYTE // models, budget.disk * MEGABYTE // models
        if not disk:
            return FactorCache(memory)
        file = tempfile.TemporaryFile(dir=self._setting.folder)  # noqa: SIM115, closed with the attribution
        return FactorCache(memory, disk, self._open.enter_context(file))
