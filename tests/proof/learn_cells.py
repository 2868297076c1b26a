"""Points dropped while a model learns, on one data set and seed, beside points removed after it has learned.

Plain torch, with the order of the points and the rule that the ranks use. Digits (1,000 points) and Fashion-MNIST
(2,000), a tenth of the labels wrong, scattered or systematically; the recipes of least held-out loss of docs/lds.md.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from flows.ranks.order import Order
from flows.sections.curation import PruningConfig
from flows.sections.training import DropConfig
from flows.workloads.digits import Digits
from flows.workloads.fashion_mnist import FashionMnist
from flows.workloads.images import ImageWorkload, perceptron
from influence import (
    EKFAC,
    Curvature,
    Damping,
    GaussNewton,
    Identity,
    Influence,
    harmful,
    head,
    knn_votes,
    label_conformity,
    linear_blocks,
    mislabeled,
    trusted,
    two_round,
)
from influence.blocks import Block
from influence.discovery import Influences
from influence.dropping import HeadInfluence, HeadPoints, HeadScorer, worst
from tests.proof.lds_estimators import BATCH as READ
from tests.proof.lds_estimators import TASK
from tests.proof.lds_models import BATCH, CLASSES, HIDDEN, MOMENTUM, SHARES, Recipe, module
from tests.proof.lds_models import train as train_many
from tests.proof.lds_truth import Labelled, labelled

RATE, QUERIES, TEST = 0.1, 300, 8000
FROM, EVERY = 6, 15  # the first drop after a sixth of the epochs, then every fifteenth of them
FRACTION, CAP, CLASS_BUDGET = 0.02, 0.15, 0.5  # at a time; in all, and of a class: the shipped budgets
FOLDS, REPEATS, NEIGHBOURS = 5, 2, 15  # as shipped
SHIPPED = PruningConfig()
Curvatures = Callable[[Block], Curvature]
Score = Callable[[nn.Sequential, Tensor], HeadInfluence]
"""Scores every point, from the model and the rows in training."""
HEADS: Mapping[str, Curvatures] = {
    "influence, EK-FAC of the head": lambda block: EKFAC([block]),
    "influence, exact Gauss-Newton of the head": lambda block: GaussNewton([block]),
    "influence, inner product of the head's gradients": lambda block: Identity([block]),
}


@dataclass(frozen=True)
class Setting:
    """A data set, what is wrong with it, and how models are trained on it."""

    name: str
    workload: Callable[[int], ImageWorkload]
    recipe: Recipe


def _fashion(corruption: str, seed: int) -> ImageWorkload:
    return FashionMnist("mlp", 2000, QUERIES, TEST, corruption, RATE, seed)  # type: ignore[arg-type]


def _digits(corruption: str, seed: int) -> ImageWorkload:
    return Digits(corruption, RATE, seed, queries=QUERIES)  # type: ignore[arg-type]


SETTINGS = (
    Setting("digits, flips", partial(_digits, "flips"), Recipe(0.2, 0.001, 120)),
    Setting("digits, systematic", partial(_digits, "systematic"), Recipe(0.2, 0.001, 120)),
    Setting("Fashion-MNIST, flips", partial(_fashion, "flips"), Recipe(0.05, 0.01, 30)),
    Setting("Fashion-MNIST, systematic", partial(_fashion, "systematic"), Recipe(0.05, 0.01, 30)),
)


@dataclass(frozen=True)
class Sets:
    """Train points with given labels, which of them are wrong [n], trusted queries and clean test points."""

    points: Labelled
    wrong: Tensor
    queries: Labelled
    test: Labelled


@dataclass(frozen=True)
class Arm:
    """One model: its accuracy on clean test points, how many points it was spared, and the share of these in error."""

    accuracy: float
    points: int
    precision: float


@dataclass(frozen=True)
class Cell:
    """What was measured with one setting and seed; `seconds` of CPU."""

    setting: str
    seed: int
    arms: dict[str, Arm]
    seconds: float


class Learner:
    """Trains single models on one data set, each for as many steps as on all points."""

    def __init__(self, sets: Sets, recipe: Recipe, seed: int) -> None:
        self.sets, self.recipe, self.seed = sets, recipe, seed
        self.count = len(sets.points.labels)
        self.checkpoints: list[nn.Sequential] = []

    def arm(self, rows: Tensor, score: Score | None = None) -> Arm:
        """Train a model on some points, and drop some of them while it learns, if a score says which."""
        torch.manual_seed(self.seed)
        points, rates = self.sets.points, self.recipe.rates(self.count)
        model = nn.Sequential(*perceptron(points.inputs.shape[1], *HIDDEN, CLASSES))
        solver = torch.optim.SGD(model.parameters(), self.recipe.rate, MOMENTUM, weight_decay=self.recipe.weight_decay)
        order, epochs = Order(rows, BATCH, self.seed), self.recipe.epochs
        drops = DropConfig(from_epoch=epochs // FROM, every=epochs // EVERY, fraction=FRACTION, cap=CAP)
        active = torch.zeros(self.count, dtype=torch.bool).index_fill(0, rows, True)
        saved = {round(share * len(rates)) for share in SHARES}
        self.checkpoints = []
        for step, rate in enumerate(rates, start=1):
            batch = order.next()
            solver.param_groups[0]["lr"] = rate
            solver.zero_grad()
            cross_entropy(model(points.inputs[batch]), points.labels[batch]).backward()
            solver.step()
            if score is not None and any(map(drops.due, order.ended)) and step < len(rates):
                gone = self._worst(score(model, active.nonzero()[:, 0]), active)
                active[gone] = False
                order.drop(gone)
            if step in saved:
                self.checkpoints.append(self._copy(model))
        return self._judged(model, ~active)

    def _worst(self, found: HeadInfluence, active: Tensor) -> Tensor:
        labels = self.sets.points.labels
        room = (CLASS_BUDGET * torch.bincount(labels, minlength=CLASSES)).long()
        room -= torch.bincount(labels[~active], minlength=CLASSES)
        most = min(int(FRACTION * self.count), int(CAP * self.count) - int((~active).sum()))
        return _within(worst(found, active), labels, room, most)

    def _judged(self, model: nn.Sequential, gone: Tensor) -> Arm:
        with torch.no_grad():
            right = model(self.sets.test.inputs).argmax(1) == self.sets.test.labels
        precision = float(self.sets.wrong[gone].double().mean()) if bool(gone.any()) else 0.0
        return Arm(float(right.double().mean()), int(gone.sum()), precision)

    def _copy(self, model: nn.Sequential) -> nn.Sequential:
        again = nn.Sequential(*perceptron(self.sets.points.inputs.shape[1], *HIDDEN, CLASSES))
        again.load_state_dict(model.state_dict())
        return again

    def by_influence(self, curvature: Curvatures) -> Score:
        """On the queries, through the head."""

        def score(model: nn.Sequential, rows: Tensor) -> HeadInfluence:
            block, every = head(model), _read(model, self.sets.points)
            active = HeadPoints(every.inputs[rows], every.logits[rows], every.labels[rows])
            damping = Damping("horizon", self.recipe.horizon(self.count), self.recipe.weight_decay)
            queries = _read(model, self.sets.queries)
            return HeadScorer(curvature(block), lambda: [active], queries, len(rows), damping).score(every)

        return score

    def by_loss(self, model: nn.Sequential, rows: Tensor) -> HeadInfluence:
        """The largest first."""
        with torch.no_grad():
            losses = cross_entropy(model(self.sets.points.inputs), self.sets.points.labels, reduction="none")
        return HeadInfluence(-losses.double(), torch.zeros(self.count))

    def at_random(self) -> Score:
        """Any."""
        generator = torch.Generator().manual_seed(self.seed + 31)
        return lambda model, rows: HeadInfluence(-torch.rand(self.count, generator=generator), torch.zeros(self.count))

    def proposed(self) -> Tensor:
        """What the shipped policies and budget remove by the checkpoints of the model trained last, bool [n]."""
        points, everyone = self.sets.points, torch.ones(self.count, dtype=torch.bool)
        pairs, queries, own, theirs = zip(*map(self._influence, self.checkpoints), strict=True)
        found = torch.stack(pairs).sum(0)
        scores = Influences(found.mean(1), found.std(1) / QUERIES**0.5, torch.stack(own).sum(0))
        reference = trusted(torch.stack(queries).sum(0), torch.stack(theirs).sum(0))
        votes = knn_votes(points.inputs, points.labels, CLASSES, everyone, NEIGHBOURS)
        suspicion = two_round(self._out_of_fold(), votes, points.labels, everyone)
        conformity = label_conformity(points.inputs, points.labels, self.sets.queries.inputs, self.sets.queries.labels)
        named = harmful(scores, reference, everyone, SHIPPED.harmful_q, conformity).selected
        named = named | mislabeled(suspicion.posterior, everyone, SHIPPED.mislabeled_q).selected
        below = HeadInfluence(found.mean(1) - found.max(), torch.zeros(self.count))  # all named, the most harmful first
        room = (CLASS_BUDGET * torch.bincount(points.labels, minlength=CLASSES)).long()
        gone = torch.zeros(self.count, dtype=torch.bool)
        gone[_within(worst(below, named), points.labels, room, int(CAP * self.count))] = True
        return gone

    def _influence(self, model: nn.Sequential) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of points on queries [n, m] and of queries on queries [m, m], and of each on itself [n] and [m]."""
        blocks = linear_blocks(model)
        points, queries = (
            list(zip(one.inputs.split(READ), one.labels.split(READ), strict=True))
            for one in (self.sets.points, self.sets.queries)
        )
        with Influence(model, TASK, EKFAC(blocks), blocks) as influence:
            influence.fit(points, Damping("absolute", self.recipe.weight_decay))
            found, theirs = influence.pairs(points, queries), influence.pairs(queries, queries)
        return found.influence, theirs.influence, found.self_influence, theirs.self_influence

    def _out_of_fold(self) -> Callable[[Tensor], Tensor]:
        points, rounds = self.sets.points, [0]

        def log_probabilities(kept: Tensor) -> Tensor:
            rounds[0] += 1
            total, count = torch.zeros(self.count, CLASSES, dtype=torch.float64), torch.zeros(self.count).double()
            generator, held, seen = torch.Generator().manual_seed(self.seed + 7919 * rounds[0]), [], []
            for _ in range(REPEATS):
                dealt = kept.nonzero()[:, 0]
                dealt = dealt[torch.randperm(len(dealt), generator=generator)]
                for fold in range(FOLDS):
                    out = torch.isin(torch.arange(self.count), dealt[fold::FOLDS])
                    held.append(out | ~kept)
                    seen.append((kept & ~out).nonzero()[:, 0])
            least = min(map(len, seen))  # models that are trained side by side see as many points each
            members = torch.stack([rows[:least] for rows in seen])
            seeds = [1000 * rounds[0] + self.seed + number for number in range(len(seen))]
            for layers in train_many(self.recipe, points.inputs, points.labels, members, seeds):
                for number, out in enumerate(held):
                    with torch.no_grad():
                        total[out] += module(layers, number)(points.inputs[out]).double().log_softmax(1)
                    count[out] += 1
            return total / count[:, None]

        return log_probabilities


def measure(setting: Setting, seed: int) -> Cell:
    """Train every arm of a setting with the seed of its split, its planted errors and the training."""
    started = time.process_time()
    learner = Learner(_sets(setting.workload(seed)), setting.recipe, seed)
    everyone, sets = torch.arange(learner.count), learner.sets
    arms = {"nothing": learner.arm(everyone)}
    gone = learner.proposed()
    for name, curvature in HEADS.items():
        arms[f"while learning: {name}"] = learner.arm(everyone, learner.by_influence(curvature))
    arms["while learning: loss"] = learner.arm(everyone, learner.by_loss)
    arms["while learning: random"] = learner.arm(everyone, learner.at_random())
    arms["after: the shipped policies"] = learner.arm((~gone).nonzero()[:, 0])
    arms["the truth (oracle)"] = learner.arm((~sets.wrong).nonzero()[:, 0])
    return Cell(setting.name, seed, arms, time.process_time() - started)


def kept(setting: Setting, seed: int, folder: Path) -> Cell:
    """The measurement of a setting and seed; not made again if the folder holds it."""
    path = folder / f"{SETTINGS.index(setting)}-{seed}.json"
    if not path.exists():
        path.write_text(json.dumps(asdict(measure(setting, seed)), indent=1))
        print(f"{setting.name}, seed {seed}", flush=True)
    raw = json.loads(path.read_text())
    return Cell(**(raw | {"arms": {name: Arm(**arm) for name, arm in raw["arms"].items()}}))


def _within(rows: Tensor, labels: Tensor, room: Tensor, most: int) -> Tensor:
    """The first of these rows for which there is room in their class [C], and in all."""
    turn = one_hot(labels[rows], CLASSES).cumsum(0).gather(1, labels[rows, None])[:, 0]  # within its class, from 1
    return rows[turn <= room[labels[rows]]][: max(0, most)]


def _sets(workload: ImageWorkload) -> Sets:
    points, truth = workload.points(), workload.truth()
    given = labelled(workload, points)
    true = torch.tensor([truth[point] for point in points.ids])
    queries, test = labelled(workload, workload.queries()), labelled(workload, workload.holdout())
    return Sets(given, given.labels != true, queries, test)


def _read(model: nn.Sequential, points: Labelled) -> HeadPoints:
    with torch.no_grad():
        inputs = model[:-1](points.inputs)
        logits = model[-1](inputs)
    return HeadPoints(torch.cat([inputs, torch.ones(len(inputs), 1)], 1).double(), logits.double(), points.labels)
