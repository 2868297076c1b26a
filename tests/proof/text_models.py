"""A shipped text set with one seed of flips: its points, how models are trained, judged and asked for influence.

The frozen layers run once for all cells. Batches go through the model in parts of like length, so that little is
padded: the same losses at half the cost.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from flows.asking import task_of
from flows.config import load
from flows.ranks.plain import train_plainly
from flows.ranks.points import Points
from flows.recipe import save_points, steps_for
from flows.workload import Home, Sample
from flows.workloads.text.classification import TextClassification
from flows.workloads.text.tokens import Batch
from influence import (
    EKFAC,
    Blocks,
    Damping,
    DualGaussNewton,
    FactorCache,
    Fisher,
    Influence,
    PairScorer,
    Queries,
    Reader,
    Reading,
    fit,
    group_means,
)
from tests.proof.run import ROOT

SETS = {
    "reviews": ROOT / "deploy" / "text" / "tamis.toml",
    "newsgroups": ROOT / "deploy" / "newsgroups" / "tamis.toml",
}
CACHE = ROOT / "build" / "texts"
TRAINED, READ = 8, 64  # texts of like length that go through a model together
KEPT = 2 << 30  # bytes of factors between the passes of an estimator
RANK, FASTER = 8, 10  # of LoRA's adapters, and how many times larger their learning rate is
Choice = Callable[[nn.Module], Blocks]


@dataclass(frozen=True)
class Outcome:
    """A trained model on the clean holdout set: share of right answers, and mean loss in nats."""

    accuracy: float
    loss: float


@dataclass(frozen=True)
class Scores:
    """Influence of n points on the queries.

    Attributes:
        mean: On the mean of all of them `[n]`.
        single: On the first few `[n, q]`.
        own: Self-influence `[n]`, where it was asked for.
        seconds: Of CPU.
    """

    mean: Tensor
    single: Tensor
    own: Tensor
    seconds: float


class Sorted:
    """A text workload whose batches go through the model in parts of like length.

    Args:
        whole: The workload.
        adapted: Whether LoRA's adapters at queries and values of the trained layers, and the head, are all that is
            trained.
    """

    def __init__(self, whole: TextClassification, adapted: bool = False) -> None:
        self._whole, self._adapted = whole, adapted
        self.collate, self.labels = whole.collate, whole.labels
        self.points, self.queries, self.holdout = whole.points, whole.queries, whole.holdout

    def model(self) -> nn.Module:
        """The workload's own, with adapters if they are wanted."""
        if not self._adapted:
            return self._whole.model()
        from peft import LoraConfig, get_peft_model

        where = {"target_modules": ["query", "value"], "modules_to_save": ["head"]}
        return get_peft_model(self._whole.model(), LoraConfig(r=RANK, lora_alpha=2 * RANK, **where))

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Class scores `[B, C]`."""
        tokens, mask = batch["input_ids"], batch["attention_mask"]
        order, parts = mask.sum(1).argsort(stable=True), []
        for rows in order.split(TRAINED if model.training else READ):
            longest = int(mask[rows].sum(1).max())
            part = {"input_ids": tokens[rows, :longest], "attention_mask": mask[rows, :longest]}
            parts.append(self._whole.logits(model, part))
        return torch.cat(parts)[order.argsort()]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy of the given label `[B]`."""
        return cross_entropy(self.logits(model, batch), batch["labels"], reduction="none")


class Bench:
    """A set and a seed.

    Args:
        name: Of the set.
        seed: Of the flips and the training.
        points: Train points that are taken, at even distances; default: all.
        judged: The same of the holdout set.
        whole: Whether all layers are trained, and not those that the TOML names.
    """

    def __init__(
        self, name: str, seed: int, points: int | None = None, judged: int | None = None, whole: bool = False
    ) -> None:
        config = load(SETS[name])
        options: dict[str, Any] = {**config.workload.options, "seed": seed}
        if whole:
            del options["train_layers"]
        self.whole = TextClassification(Home(SETS[name].parent, CACHE), **options)
        self.workload, self.scoring = Sorted(self.whole), config.scoring
        self.training = config.training.model_copy(update={"seed": seed, "ranks": 1})
        train, holdout = self.whole.points(), self.whole.holdout()
        self.points = Points("train", Sample(train, points or len(train)), self.workload)
        self.queries = Points("query", self.whole.queries(), self.workload)
        self.holdout = Points("holdout", Sample(holdout, judged or len(holdout)), self.workload)
        truth = self.whole.truth()
        self.wrong = torch.tensor([truth[point] for point in self.points.ids]) != self.points.labels

    def train(self, removed: Tensor, seed: int, adapted: bool = False) -> list[nn.Module]:
        """The checkpoints of a model trained without some points, `[n]` bool, for as many steps as with them."""
        recipe, saved = self.training, list[nn.Module]()
        if adapted:
            recipe = recipe.model_copy(update={"learning_rate": FASTER * recipe.learning_rate})
        workload, steps = Sorted(self.whole, adapted), steps_for(recipe, len(self.points))
        places, at = (~removed).nonzero()[:, 0], save_points(recipe, steps)
        train_plainly(
            workload, self.points, recipe, places, seed, steps, at, lambda model: saved.append(copy.deepcopy(model))
        )
        return saved

    def retrained(self, removed: Tensor, seed: int) -> Outcome:
        """The last checkpoint on the holdout set."""
        logits = self.logits(self.train(removed, seed)[-1], self.holdout).double()
        right = (logits.argmax(1) == self.holdout.labels).double().mean()
        return Outcome(float(right), float(cross_entropy(logits, self.holdout.labels)))

    def logits(self, model: nn.Module, points: Points) -> Tensor:
        """Of all points of a set, `[n, C]`."""
        everyone = by_length(points, torch.arange(len(points)))
        with torch.no_grad():
            found = torch.cat([self.workload.logits(model.eval(), points.take(part)) for part in everyone.split(READ)])
        return found[everyone.argsort()]

    def estimated(
        self,
        models: Sequence[nn.Module],
        chosen: Choice,
        singles: int = 1,
        fitted: Tensor | None = None,
        asked: Tensor | None = None,
    ) -> Scores:
        """By EK-FAC on some blocks, summed over checkpoints; of the points `asked`, fitted on others: default, all."""
        started, everyone = time.process_time(), by_length(self.points, torch.arange(len(self.points)))
        of = _batches(self.points, everyone if fitted is None else by_length(self.points, fitted))
        points, (queries, groups) = _batches(self.points, everyone if asked is None else asked), self._asking(singles)
        same, parts = fitted is None and asked is None, []
        for model in models:
            blocks = chosen(model)
            task, cache = task_of(self.whole), FactorCache(KEPT if same else 0)
            with Influence(model.eval(), task, EKFAC(blocks), blocks, self._fisher, cache) as engine:
                engine.fit(of, self._damping)
                found = engine.groups(points, queries, groups, singles + 1)
            parts.append((found.mean, found.influence[:, :singles], found.own.self_influence))
        back = everyone.argsort() if asked is None else torch.arange(len(asked))
        mean, single, own = (torch.stack(every).sum(0)[back] for every in zip(*parts))
        return Scores(mean, single, own, time.process_time() - started)

    def exact(self, model: nn.Module, chosen: Choice, fitted: Tensor, asked: Tensor, singles: int) -> Scores:
        """By the damped Gauss-Newton matrix of all these blocks together, the mean of that of the points `fitted`."""
        started, blocks = time.process_time(), chosen(model)
        curvature, (queries, groups) = DualGaussNewton(blocks), self._asking(singles)
        order = by_length(self.points, fitted)
        with Reader(model.eval(), task_of(self.whole), blocks, self._fisher) as reader:

            def passes() -> Iterator[tuple[Reading, Tensor]]:
                for number, part in enumerate(order.split(READ)):
                    yield reader.train(self.points.take(part), number, part), torch.ones(len(part))

            fit([curvature], passes)
            curvature.finish(self._damping)
            means = group_means(map(reader.queries, queries), groups, singles + 1)
            asks = Queries(means.gradients, torch.ones(singles + 1).double(), torch.zeros(singles + 1).long())
            scorer = PairScorer(curvature, asks, len(self.points), own=False)
            parts = [scorer.score(reader.losses(batch).losses).influence for batch in _batches(self.points, asked)]
        found = torch.cat(parts)  # [b, singles + 1]
        mean = found @ (means.sizes / means.sizes.sum()).double()
        return Scores(mean, found[:, :singles], torch.empty(0), time.process_time() - started)

    @property
    def _damping(self) -> Damping:
        return Damping("absolute", self.training.weight_decay)

    @property
    def _fisher(self) -> Fisher:
        return Fisher(self.scoring.fisher, seed=self.training.seed)

    def _asking(self, singles: int) -> tuple[list[Batch], Tensor]:
        """All queries, shortest first, and their groups: each of the first few of the set alone, the rest together."""
        order = by_length(self.queries, torch.arange(len(self.queries)))
        return _batches(self.queries, order), order.clamp(max=singles)


def by_length(points: Points, places: Tensor) -> Tensor:
    """The places, shortest text first."""
    return places[points.take(places)["attention_mask"].sum(1).argsort(stable=True)]


def _batches(points: Points, places: Tensor) -> list[Batch]:
    return [points.take(part) for part in places.split(READ)]
