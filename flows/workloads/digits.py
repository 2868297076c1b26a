"""scikit-learn's 1,797 handwritten digits with errors planted in the train labels, so that the truth is known.

The sets are split by the content of the images. Query and holdout labels stay clean. `describe` draws the digit for the
report; `truth` gives the labels before the errors were planted.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 10
IN_TRAIN = 0.76  # share of the misled class that the train set holds
MISLED = ((8, 1), (3, 5), (4, 9), (7, 2), (9, 7))  # true class, the class it is labelled as
Batch = tuple[Tensor, Tensor]


class Digit(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Digits `[64]` in `[0, 1]`, with ids (their place in scikit-learn's file) and labels."""

    def __init__(self, images: Tensor, labels: Sequence[int], ids: Sequence[int]) -> None:
        self.images, self.labels, self.ids = images, list(labels), list(ids)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], self.labels[index]


class Digits:
    """Handwritten digits and a small multilayer perceptron.

    Args:
        corruption: `flips` gives a share of the train points a random wrong label; `systematic` labels a visible
            subgroup (the heavier drawn digits) of one class as another class.
        rate: Share of the train points with a wrong label.
        seed: Of the split, the planted errors and the choice of the misled class.
        points: How many digits the train set has.
        queries: How many are queries; the rest is the holdout set.
        hidden: Widths of the hidden layers.
    """

    def __init__(
        self,
        corruption: Literal["flips", "systematic"] = "flips",
        rate: float = 0.1,
        seed: int = 0,
        points: int = 1000,
        queries: int = 300,
        hidden: Sequence[int] = (64, 32),
    ) -> None:
        if corruption not in ("flips", "systematic"):
            raise ValueError(f"corruption = {corruption!r}: give 'flips' or 'systematic'")
        if not 0 <= rate <= 1:
            raise ValueError(f"rate = {rate}: give a share from 0 to 1")
        from sklearn.datasets import load_digits

        data = load_digits()
        self._images = torch.from_numpy(data.data).float() / 16
        self._true = torch.from_numpy(data.target).long()
        self._hidden = tuple(hidden)
        keys = [hashlib.sha256(f"{seed}".encode() + image.tobytes()).hexdigest() for image in data.data]
        order = sorted(range(len(keys)), key=keys.__getitem__)
        self._given = self._true.clone()
        if corruption == "flips":
            self._split(order[:points], order[points:], queries)
            self._flip(rate, seed)
        else:
            source, target = MISLED[seed % len(MISLED)]
            self._split_around(source, order, points, queries)
            self._mislead(round(rate * points), source, target)

    def model(self) -> nn.Module:
        """A multilayer perceptron with rectified linear units."""
        sizes = (64, *self._hidden)
        layers: list[nn.Module] = []
        for wide, narrow in pairwise(sizes):
            layers += [nn.Linear(wide, narrow), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(sizes[-1], CLASSES))

    def points(self) -> Digit:
        """The train set, errors included."""
        return self._set(self._train, self._given)

    def queries(self) -> Digit:
        """Clean digits that influence is measured on."""
        return self._set(self._query, self._true)

    def holdout(self) -> Digit:
        """Clean digits that judge."""
        return self._set(self._rest, self._true)

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Class scores `[B, 10]`."""
        scores: Tensor = model(batch[0])
        return scores

    def labels(self, batch: Batch) -> Tensor:
        """Given labels `[B]`."""
        return batch[1]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy of each point in nats `[B]`."""
        return F.cross_entropy(self.logits(model, batch), batch[1], reduction="none")

    def describe(self, point_id: int) -> bytes:
        """The digit as a PNG."""
        from PIL import Image

        grey = ((1 - self._images[point_id]) * 255).round().byte().view(8, 8)
        out = io.BytesIO()
        Image.fromarray(grey.numpy()).resize((64, 64), Image.Resampling.NEAREST).save(out, "PNG")
        return out.getvalue()

    def truth(self) -> Mapping[int, int]:
        """The true label of every train point."""
        return {row: int(self._true[row]) for row in self._train}

    def _set(self, rows: Sequence[int], labels: Tensor) -> Digit:
        return Digit(self._images[rows], labels[rows].tolist(), rows)

    def _flip(self, rate: float, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        count = round(rate * len(self._train))
        rows = torch.tensor(self._train)[torch.randperm(len(self._train), generator=generator)[:count]]
        shift = torch.randint(1, CLASSES, (count,), generator=generator)
        self._given[rows] = (self._true[rows] + shift) % CLASSES

    def _split(self, train: list[int], rest: list[int], queries: int) -> None:
        self._train, self._query, self._rest = train, rest[:queries], rest[queries:]

    def _split_around(self, source: int, order: list[int], points: int, queries: int) -> None:
        """Put most of one class into the train set, so that a subgroup of it can be a tenth of all points."""
        of_class = [row for row in order if self._true[row] == source]
        others = [row for row in order if self._true[row] != source]
        cut = round(IN_TRAIN * len(of_class))
        train, others = of_class[:cut] + others[: points - cut], others[points - cut :]
        half = (len(of_class) - cut) // 2
        rest = of_class[cut : cut + half] + others[: queries - half] + of_class[cut + half :] + others[queries - half :]
        self._split(train, rest, queries)

    def _mislead(self, count: int, source: int, target: int) -> None:
        rows = torch.tensor([row for row in self._train if self._true[row] == source])
        if count > len(rows):
            raise ValueError(f"{count} points of class {source} are to be misled, the train set has {len(rows)}")
        ink = self._images[rows].sum(1)
        self._given[rows[ink.argsort(descending=True)[:count]]] = target
