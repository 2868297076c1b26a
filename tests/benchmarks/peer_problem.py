"""What every library is given: a trained classifier, its earlier checkpoints, its train points and queries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypedDict

from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from tests.proof.lds_models import Layers, module

Batch = tuple[Tensor, Tensor]  # inputs [B, d], labels [B]


class Handed(TypedDict):
    """A problem as it is kept in a file, with what a user can afford to choose a damping by."""

    checkpoints: list[Layers]
    points: Batch
    queries: Batch
    seed: int
    halves: Tensor  # [M, n], bool
    losses: Tensor  # of a model on each half, [M, m]


@dataclass(frozen=True)
class Problem:
    """One model and its data.

    Attributes:
        checkpoints: of its training; the last is the model.
        train: n points.
        queries: m points.
        seed: of the model, and of what a library draws.
    """

    checkpoints: list[nn.Sequential]
    train: Batch
    queries: Batch
    seed: int

    @classmethod
    def of(cls, handed: Handed) -> Problem:
        """From what a file holds."""
        models = [module(layers, 0).eval() for layers in handed["checkpoints"]]
        return cls(models, handed["points"], handed["queries"], handed["seed"])

    @property
    def model(self) -> nn.Sequential:
        """The trained model."""
        return self.checkpoints[-1]

    @property
    def points(self) -> int:
        """n."""
        return len(self.train[1])

    def floor(self) -> None:
        """Plain forward and backward over all points and queries, all weights trainable, 256 at a time."""
        for inputs, labels in (self.train, self.queries):
            for x, y in zip(inputs.split(256), labels.split(256), strict=True):
                cross_entropy(self.model(x), y, reduction="sum").backward()
                self.model.zero_grad()


Method = Callable[[Problem, float], Tensor]  # problem, damping -> influence [n, m], positive = helpful


def dataset(batch: Batch) -> TensorDataset:
    """The points, for libraries that want a data set."""
    return TensorDataset(*batch)


def loader(batch: Batch, size: int | None = None) -> DataLoader[Batch]:
    """In order; all points at once unless said."""
    return DataLoader(dataset(batch), batch_size=size or len(batch[1]))
