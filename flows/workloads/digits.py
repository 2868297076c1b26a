"""scikit-learn's 1,797 handwritten digits with errors planted in the train labels, so that the truth is known.

The sets are split by the content of the images. Holdout labels stay clean, and query labels unless asked. `describe`
draws the digit for the report; `truth` gives the labels before the errors were planted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flows.workloads.images import ImageWorkload, Split, Stack, perceptron, with_copies
from flows.workloads.label_errors import (
    Corruption,
    check_rate,
    confused,
    flipped,
    flipped_besides,
    foreign,
    misled,
    refuse,
)

CLASSES = 10
IN_TRAIN = 0.76  # share of the misled class that the train set holds
MISLED = ((8, 1), (3, 5), (4, 9), (7, 2), (9, 7))  # true class, the class it is labelled as
TAKEN_FOR = (6, 8, 1, 9, 7, 9, 0, 4, 1, 3)  # our choice: a digit that is drawn alike


class Digits(ImageWorkload):
    """Handwritten digits `[64]` in `[0, 1]` and a small multilayer perceptron.

    Args:
        corruption: What errors (label_errors.py). The subgroup of `systematic` and `mixed` are the heavier drawn digits
            of one class; `class_dependent` and `foreign` take a digit for one that is drawn alike.
        rate: Share of the train points with a wrong label.
        seed: Of the split, the planted errors and the choice of the misled class.
        points: How many digits the train set has.
        queries: How many are queries; the rest is the holdout set.
        hidden: Widths of the hidden layers.
        query_rate: Share of the queries with a random wrong label.
        copies: Share of the train points that are exact copies of others.
    """

    def __init__(
        self,
        corruption: Corruption = "flips",
        rate: float = 0.1,
        seed: int = 0,
        points: int = 1000,
        queries: int = 300,
        hidden: Sequence[int] = (64, 32),
        query_rate: float = 0.0,
        copies: float = 0.0,
    ) -> None:
        check_rate(rate)
        check_rate(query_rate)
        from sklearn.datasets import load_digits

        data = load_digits()
        images = torch.from_numpy(data.data).float() / 16
        true = torch.from_numpy(data.target).long()
        keys = [hashlib.sha256(f"{seed}".encode() + image.tobytes()).hexdigest() for image in data.data]
        order = torch.tensor(sorted(range(len(keys)), key=keys.__getitem__))
        generator = torch.Generator().manual_seed(seed)
        split = _split(order[:points], order[points:], queries)
        match corruption:
            case "flips":
                given = flipped(true, split.train, rate, CLASSES, generator)
            case "class_dependent":
                given = confused(true, split.train, rate, TAKEN_FOR, generator)
            case "systematic" | "mixed":
                source, target = MISLED[seed % len(MISLED)]
                split = _split_around(true[order] == source, order, points, queries)
                rows = split.train[true[split.train] == source]
                part = rate if corruption == "systematic" else rate / 2
                given = misled(true, rows, images[rows].sum(1), round(part * points), target)  # the heaviest drawn
                if corruption == "mixed":
                    given = flipped_besides(given, true, split.train, rate - part, CLASSES, generator)
            case "foreign":
                images, given = foreign(images, true, split.train, rate, TAKEN_FOR, generator)
            case _:
                raise refuse(corruption)
        given = flipped(given, split.query, query_rate, CLASSES, generator)
        super().__init__(with_copies(Stack(images, true, given, split), copies, generator), tuple(hidden))

    def model(self) -> nn.Module:
        """A multilayer perceptron with rectified linear units."""
        return nn.Sequential(*perceptron(64, *self._hidden, CLASSES))


def _split(train: Tensor, rest: Tensor, queries: int) -> Split:
    return Split(train, rest[:queries], rest[queries:])


def _split_around(chosen: Tensor, order: Tensor, points: int, queries: int) -> Split:
    """Put most of one class into the train set, so that a subgroup of it can be a tenth of all points."""
    of_class, others = order[chosen], order[~chosen]
    cut = round(IN_TRAIN * len(of_class))
    train, others = torch.cat([of_class[:cut], others[: points - cut]]), others[points - cut :]
    half = (len(of_class) - cut) // 2
    query = torch.cat([of_class[cut : cut + half], others[: queries - half]])
    return _split(train, torch.cat([query, of_class[cut + half :], others[queries - half :]]), queries)
