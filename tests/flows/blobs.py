"""A workload whose truth is known, small enough for a cycle in seconds; each `fault` breaks it in one way."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

Batch = tuple[Tensor, Tensor]
CENTRES = torch.tensor([[0.0, 2.0], [1.7, -1.0], [-1.7, -1.0]])


class Cloud(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Points of three classes; the first `wrong` of them carry the label of the next class."""

    def __init__(self, first: int, count: int, wrong: int = 0) -> None:
        generator = torch.Generator().manual_seed(first)
        self.true = torch.randint(3, (count,), generator=generator)
        self.samples = CENTRES[self.true] + 0.5 * torch.randn(count, 2, generator=generator)
        self.ids: list[object] = list(range(first, first + count))
        self.labels = [(label + (row < wrong)) % 3 for row, label in enumerate(self.true.tolist())]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.samples[index], self.labels[index]


class Doubled(torch.autograd.Function):
    """With a backward pass alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient


class Net(nn.Module):
    def __init__(self, fault: str) -> None:
        super().__init__()
        self.hidden, self.head, self.fault = nn.Linear(2, 8), nn.Linear(8, 3), fault
        if fault == "nothing learns":
            self.hidden.requires_grad_(False)
            self.head.requires_grad_(False)
            self.shift = nn.Parameter(torch.zeros(3))
        if fault == "unused layer":
            self.aaa = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.hidden(x).relu()
        if self.fault == "layer called twice":
            h = h + self.hidden(x)
        if self.fault == "no forward derivative":
            h = Doubled.apply(h)
        logits = self.head(h)
        if self.fault == "nothing learns":
            return logits + self.shift
        return logits / 2 if self.fault == "rescaled head" else logits


class Blobs:
    """120 points, of which the first 12 carry a wrong label.

    Args:
        wrong: How many do.
        perverse: The holdout set agrees with the wrong labels everywhere, so that removing them is a loss.
        fault: What is wrong with the workload.
        marker: A file; once it is there, one sample is another: the data have moved.
    """

    def __init__(self, wrong: int = 12, perverse: bool = False, fault: str = "", marker: str = "") -> None:
        self.wrong, self.perverse, self.fault, self.marker = wrong, perverse, fault, marker

    def model(self) -> nn.Module:
        return Net(self.fault)

    def points(self) -> Cloud:
        cloud = Cloud(0, 120, self.wrong)
        if self.fault == "duplicate ids":
            cloud.ids[1] = cloud.ids[0]
        if self.fault == "far point":
            cloud.samples[20] = 1e4 * CENTRES[cloud.labels[20]]
        if self.fault == "numpy ids":
            cloud.ids = list(np.asarray(cloud.ids))
        if self.fault == "label outside":
            cloud.labels[5] = 7
        if self.marker and Path(self.marker).exists():
            cloud.samples[3] += 1.0
        return cloud

    def queries(self) -> Cloud:
        cloud = Cloud(10_000, 60)
        if self.fault == "overlap":
            cloud.samples[0] = self.points().samples[0]
            cloud.labels[0] = 2
        return cloud

    def holdout(self) -> Cloud:
        return Cloud(20_000, 150, 150 * self.perverse)

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(batch[0])

    def labels(self, batch: Batch) -> Tensor:
        return batch[1]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        logits = self.logits(model, batch)
        if self.fault == "reduced":
            return F.cross_entropy(logits, batch[1])
        losses = F.cross_entropy(logits, batch[1], reduction="none")
        if self.fault == "smoothed":
            return F.cross_entropy(logits, batch[1], reduction="none", label_smoothing=0.2)
        if self.fault == "nan":
            return losses / torch.zeros_like(losses).where(self._is(batch, 7), torch.ones_like(losses))
        when = {"nan in training": model.training, "nan in scoring": not model.training}
        if when.get(self.fault):
            return losses.where(~self._is(batch, 77), torch.nan)
        return losses

    def truth(self) -> dict[int, int]:
        return dict(enumerate(Cloud(0, 120).true.tolist()))

    def _is(self, batch: Batch, row: int) -> Tensor:
        return (batch[0] == self.points().samples[row]).all(1)
