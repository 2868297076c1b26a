"""Fashion-MNIST (Xiao et al. 2017, arXiv 1708.07747) with errors planted in the train labels: the truth is known.

The files are those of the Debian package dataset-fashion-mnist, which `make data` installs. An id counts through the
60,000 train images, then the 10,000 test images. An image that occurs twice is used once, so that no two sets share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from flows.errors import BadInput
from flows.workloads.idx import read_idx
from flows.workloads.images import Batch, ImageWorkload, Split, Stack, perceptron, with_copies
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

FOLDER = "/usr/share/datasets/fashion-mnist"
NAMES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
PULLOVER, COAT, SANDAL, SNEAKER = 2, 4, 5, 7
TAKEN_FOR = (6, 3, 4, 6, 2, 7, 0, 9, 2, 7)  # what a perceptron trained on clean labels confuses each class with most
SIDE = 28


class FashionMnist(ImageWorkload):
    """Pictures of clothes `[784]`, bytes, and a small network.

    Args:
        model: `mlp`, a perceptron, or `cnn`, two convolutions of 32 and 64 channels with pooling before it.
        points: How many train points, of the train images.
        queries: How many queries, of the test images, then of the train images that are left.
        holdout: How many holdout points, from where the queries end.
        corruption: What errors (label_errors.py). `systematic` and `mixed` label the brightest coats as pullovers and
            the darkest sneakers as sandals, as many of each; `class_dependent` and `foreign` take a class for the one
            that it is most often taken for.
        rate: Share of the train points with a wrong label.
        seed: Of the split and the planted errors.
        hidden: Widths of the dense layers before the last; default: 64 and 32, or 128 in the `cnn`.
        folder: Of the four gzipped IDX files.
        query_rate: Share of the queries with a random wrong label.
        copies: Share of the train points that are exact copies of others.
    """

    def __init__(
        self,
        model: Literal["mlp", "cnn"] = "mlp",
        points: int = 5000,
        queries: int = 500,
        holdout: int = 5000,
        corruption: Corruption = "flips",
        rate: float = 0.1,
        seed: int = 0,
        hidden: Sequence[int] | None = None,
        folder: str = FOLDER,
        query_rate: float = 0.0,
        copies: float = 0.0,
    ) -> None:
        if model not in ("mlp", "cnn"):
            raise ValueError(f"model = {model!r}: give 'mlp' or 'cnn'")
        check_rate(rate)
        check_rate(query_rate)
        images, true, first, second = _read(Path(folder))
        generator = torch.Generator().manual_seed(seed)
        split = _split(_shuffled(first, generator), _shuffled(second, generator), points, queries, holdout)
        match corruption:
            case "flips":
                given = flipped(true, split.train, rate, len(NAMES), generator)
            case "class_dependent":
                given = confused(true, split.train, rate, TAKEN_FOR, generator)
            case "systematic" | "mixed":
                part = rate if corruption == "systematic" else rate / 2
                given = _misled_by_brightness(images, true, split.train, round(part * points))
                if corruption == "mixed":
                    given = flipped_besides(given, true, split.train, rate - part, len(NAMES), generator)
            case "foreign":
                images, given = foreign(images, true, split.train, rate, TAKEN_FOR, generator)
            case _:
                raise refuse(corruption)
        given = flipped(given, split.query, query_rate, len(NAMES), generator)
        widths = tuple(hidden) if hidden is not None else {"mlp": (64, 32), "cnn": (128,)}[model]
        super().__init__(with_copies(Stack(images, true, given, split), copies, generator), widths)
        self._kind = model

    def model(self) -> nn.Module:
        """The network; both take the pixels of an image in one row."""
        if self._kind == "mlp":
            return nn.Sequential(*perceptron(SIDE**2, *self._hidden, len(NAMES)))
        return nn.Sequential(
            nn.Unflatten(1, (1, SIDE, SIDE)),
            *(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2)),  # [B, 32, 13, 13]
            *(nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2)),  # [B, 64, 5, 5]
            nn.Flatten(),
            *perceptron(64 * 5 * 5, *self._hidden, len(NAMES)),
        )

    def inputs(self, batch: Batch) -> Tensor:
        """Pixels in `[0, 1]`: `[B, 784]`."""
        return batch[0].float() / 255


@cache
def _read(folder: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All images `[N, 784]` and labels `[N]`, then the rows of the train and of the test images, each image once."""
    (images, labels), (more_images, more_labels) = _part(folder, "train"), _part(folder, "t10k")
    everything = torch.cat([images, more_images])
    rows: dict[bytes, int] = {}
    for row, image in enumerate(everything.numpy()):
        rows.setdefault(image.tobytes(), row)
    once = torch.tensor(list(rows.values()))
    return everything, torch.cat([labels, more_labels]), once[once < len(labels)], once[once >= len(labels)]


def _part(folder: Path, name: str) -> tuple[Tensor, Tensor]:
    images = _file(folder / f"{name}-images-idx3-ubyte.gz")
    labels = _file(folder / f"{name}-labels-idx1-ubyte.gz").long()
    if images.shape != (len(labels), SIDE, SIDE) or int(labels.max()) >= len(NAMES):
        raise BadInput(
            f"{folder}: {name} images {list(images.shape)} with labels {list(labels.shape)} up to {labels.max()} are "
            f"not Fashion-MNIST, [n, {SIDE}, {SIDE}] with [n] up to {len(NAMES) - 1}: give its folder"
        )
    return images.flatten(1), labels


def _file(path: Path) -> Tensor:
    if not path.is_file():
        raise BadInput(
            f"fashion_mnist: {path}: no such file; `make data` installs the Debian package dataset-fashion-mnist, or "
            "give workload.options.folder"
        )
    return read_idx(path)


def _split(train: Tensor, test: Tensor, points: int, queries: int, holdout: int) -> Split:
    """Take the points from the train images and the others from the test images, then from the train images left."""
    rest = torch.cat([test, train[points:]])
    if min(points, queries, holdout) < 1 or points > len(train) or queries + holdout > len(rest):
        raise ValueError(
            f"points = {points}, queries = {queries}, holdout = {holdout}: give 1 or more of each, at most "
            f"{len(train)} points, and {len(train) + len(test)} together"
        )
    return Split(train[:points], rest[:queries], rest[queries : queries + holdout])


def _shuffled(rows: Tensor, generator: torch.Generator) -> Tensor:
    return rows[torch.randperm(len(rows), generator=generator)]


def _misled_by_brightness(images: Tensor, true: Tensor, train: Tensor, count: int) -> Tensor:
    """Label half of `count` points, the brightest coats, as pullovers, and half, the darkest sneakers, as sandals."""
    given = true
    for source, label, sign, share in ((COAT, PULLOVER, 1, count - count // 2), (SNEAKER, SANDAL, -1, count // 2)):
        rows = train[true[train] == source]
        given = misled(given, rows, sign * images[rows].sum(1), share, label)
    return given
