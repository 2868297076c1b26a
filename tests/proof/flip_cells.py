"""One cell of the proof on flipped labels: what suspicion and each single signal find, and what finding it is worth.

Suspicion is the shipped one: `two_round` over the fold models of a cycle and nearest neighbours, with the shipped
settings. The single signals are those of one model of the same recipe, trained on all points, and of the first round.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from flows.asking import inputs_of
from flows.ranks.folds import OutOfFold
from flows.ranks.plain import train_plainly
from flows.ranks.points import Points
from flows.ranks.rank import Rank
from flows.recipe import save_points, steps_for
from flows.sections.scoring import ScoringConfig
from flows.sections.training import TrainingConfig
from flows.workloads.fashion_mnist import FashionMnist
from influence import auc, average_precision, cheap_signals, knn_votes, two_round

Corruption = Literal["flips", "class_dependent"]
NOISES: dict[Corruption, str] = {"flips": "uniform", "class_dependent": "class-dependent"}
CLASSES = 10
LAST = 5  # epochs whose accuracies are averaged: at a constant learning rate the last step is as good as any
JUDGED = 2500  # points per batch
SHIPPED = ScoringConfig()


@dataclass(frozen=True)
class Recipe:
    """A model and how it is trained, with AdamW.

    Attributes:
        points: Train points.
        retrainings: Of each set of points removed.
    """

    name: str
    network: str
    points: int
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    retrainings: int

    def training(self, seed: int) -> TrainingConfig:
        """The settings of a cycle."""
        return TrainingConfig(
            ranks=1,
            seed=seed,
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
        )


RECIPES = (
    Recipe("MLP, converged", "mlp", 5000, 30, 128, 1e-3, 0.1, retrainings=5),
    Recipe("MLP, memorized", "mlp", 3000, 150, 256, 2e-3, 0.0, retrainings=1),
    Recipe("CNN, converged", "cnn", 5000, 20, 128, 2e-3, 0.1, retrainings=3),
    Recipe("CNN, memorized", "cnn", 3000, 40, 128, 3e-3, 0.0, retrainings=1),
)


@dataclass(frozen=True)
class Setting:
    """What is trained on what."""

    recipe: Recipe
    corruption: Corruption
    rate: float

    @property
    def noise(self) -> str:
        """For people."""
        return f"{NOISES[self.corruption]}, {self.rate:.0%}"


SETTINGS = tuple(
    Setting(recipe, corruption, rate) for recipe in RECIPES for corruption in NOISES for rate in (0.1, 0.2)
)


@dataclass(frozen=True)
class Flips:
    """What was measured in one setting with one seed.

    Attributes:
        found: AUC and average precision of each signal, suspicion among them.
        noise_rate: As estimated.
        precision: Of removing as many points as are estimated to be wrong.
        accuracy: On clean test images, after removing nothing, those points, and what is truly wrong.
        fitted: Loss of the full model on the given labels, nats.
        seconds: Of CPU.
    """

    recipe: str
    noise: str
    seed: int
    found: dict[str, tuple[float, float]]
    true_rate: float
    noise_rate: float
    precision: float
    accuracy: dict[str, float]
    fitted: float
    seconds: float


@dataclass(frozen=True)
class Judged:
    """A model on clean test images, mean over the ends of its last epochs; the loss in nats."""

    accuracy: float
    loss: float


class Images(FashionMnist):
    """Fashion-MNIST with a CNN of two strided convolutions, which trains in seconds, in place of the pooled one."""

    def __init__(self, setting: Setting, seed: int) -> None:
        recipe, corruption = setting.recipe, setting.corruption
        super().__init__("mlp", recipe.points, 500, 9500, corruption, setting.rate, seed)
        self._network = recipe.network

    def model(self) -> nn.Module:
        if self._network == "mlp":
            return super().model()
        return nn.Sequential(
            nn.Unflatten(1, (1, 28, 28)),
            *(nn.Conv2d(1, 8, 5, stride=2, padding=2), nn.ReLU()),  # [B, 8, 14, 14]
            *(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU()),  # [B, 16, 7, 7]
            *(nn.Flatten(), nn.Linear(16 * 7 * 7, 64), nn.ReLU(), nn.Linear(64, CLASSES)),
        )


class Alone(Rank):
    """One rank that needs no other."""

    def progress(self, phase: str, done: int, total: int) -> None:
        """Nobody watches."""

    def sum(self, tensor: Tensor) -> None:
        """The sum over one rank."""


class Bench:
    """The data and models of one cell."""

    def __init__(self, setting: Setting, seed: int) -> None:
        self._workload = Images(setting, seed)
        self._training = setting.recipe.training(seed)
        self._retrainings = setting.recipe.retrainings
        self._points = Points("train", self._workload.points(), self._workload)
        self._test = Points("holdout", self._workload.holdout(), self._workload)
        truth = self._workload.truth()
        self.wrong = torch.tensor([truth[int(point)] for point in self._points.ids]) != self._points.labels

    def single(self) -> tuple[dict[str, Tensor], float]:
        """Signals of one model trained on all points, and its loss on the given labels."""
        signals = []

        def read(model: nn.Module) -> None:
            signals.append(cheap_signals(self._logits(model, self._points), self._points.labels))

        steps = self._steps()
        self._train(torch.ones_like(self.wrong), self._training.seed, set(save_points(self._training, steps)), read)
        last, losses = signals[-1], torch.stack([signal.loss for signal in signals])
        return {"loss": last.loss, "mean loss": losses.mean(0), "EL2N": last.el2n}, last.loss.mean().item()

    def suspicion(self) -> tuple[dict[str, Tensor], float]:
        """Suspicion, the signals it is made of, and its noise rate."""
        labels, everyone = self._points.labels, self._points.in_train
        inputs = inputs_of(self._workload, self._points.take(range(len(self._points))))
        votes = knn_votes(inputs, labels, CLASSES, everyone, SHIPPED.neighbours)
        folds = OutOfFold(self._workload, self._points, self._training, SHIPPED.folds, Alone(0, 1, Path()))
        rounds: list[Tensor] = []

        def out_of_fold(kept: Tensor) -> Tensor:
            rounds.append(folds.log_probabilities(kept, SHIPPED.repeats, CLASSES))
            return rounds[-1]

        found = two_round(out_of_fold, votes, labels, everyone)
        rows = torch.arange(len(labels))
        signals = {"out-of-fold": -rounds[0][rows, labels], "kNN": -votes[rows, labels], "suspicion": found.score}
        return signals, found.noise_rate

    def without(self, removed: Tensor) -> list[Judged]:
        """What each retraining without these points gives; same steps for all."""
        steps, labels = self._steps(), self._test.labels
        ends = {steps - epoch * steps // self._training.epochs for epoch in range(LAST)}
        found = []
        for retraining in range(self._retrainings):
            outcomes: list[Judged] = []

            def judge(model: nn.Module, outcomes: list[Judged] = outcomes) -> None:
                logits = self._logits(model, self._test)
                right = (logits.argmax(1) == labels).double().mean().item()
                outcomes.append(Judged(right, cross_entropy(logits, labels).item()))

            self._train(~removed, 100 * (self._training.seed + 1) + retraining, ends, judge)
            found.append(Judged(mean(one.accuracy for one in outcomes), mean(one.loss for one in outcomes)))
        return found

    def _steps(self) -> int:
        return steps_for(self._training, len(self._points))

    def _train(self, kept: Tensor, seed: int, save_at: set[int], saved: Callable[[nn.Module], None]) -> None:
        places = kept.nonzero()[:, 0]
        train_plainly(self._workload, self._points, self._training, places, seed, self._steps(), save_at, saved)

    def _logits(self, model: nn.Module, points: Points) -> Tensor:
        parts = torch.arange(len(points)).split(JUDGED)
        return torch.cat([self._workload.logits(model, points.take(part)) for part in parts])


def measure(setting: Setting, seed: int) -> Flips:
    """Measure a cell.

    Args:
        setting: What is trained on what.
        seed: Of the points, the planted errors and the training.
    """
    started = time.process_time()
    bench = Bench(setting, seed)
    signals, fitted = bench.single()
    ours, noise_rate = bench.suspicion()
    pruned = first(ours["suspicion"], noise_rate)
    removed = {"nothing": torch.zeros_like(pruned), "suspicion": pruned, "the truth": bench.wrong}
    return Flips(
        recipe=setting.recipe.name,
        noise=setting.noise,
        seed=seed,
        found={
            name: (auc(signal, bench.wrong), average_precision(signal, bench.wrong))
            for name, signal in (signals | ours).items()
        },
        true_rate=bench.wrong.double().mean().item(),
        noise_rate=noise_rate,
        precision=bench.wrong[pruned].double().mean().item(),
        accuracy={name: mean(one.accuracy for one in bench.without(gone)) for name, gone in removed.items()},
        fitted=fitted,
        seconds=time.process_time() - started,
    )


def first(score: Tensor, share: float) -> Tensor:
    """This share of the points, the highest scores, bool `[n]`."""
    chosen = torch.zeros(len(score), dtype=torch.bool)
    chosen[score.argsort(descending=True, stable=True)[: round(share * len(score))]] = True
    return chosen


def to_json(cell: Flips) -> str:
    """A cell as JSON."""
    return json.dumps(asdict(cell), indent=1)


def from_json(text: str) -> Flips:
    """A cell from JSON."""
    raw = json.loads(text)
    return Flips(**(raw | {"found": {name: tuple(pair) for name, pair in raw["found"].items()}}))
