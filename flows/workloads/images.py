"""What the image workloads share: three sets over one stack of images, a cross-entropy, a perceptron, a PNG."""

from __future__ import annotations

import copy
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PICTURE = 64  # pixels along a side, about
Batch = tuple[Tensor, Tensor]


class ImageSet(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Some images of a stack with their labels; the id of an image is its row in the stack.

    Args:
        images: The stack `[N, d]`, shared by all sets.
        rows: Of this set's images `[n]`.
        labels: Of this set's images `[n]`.
    """

    def __init__(self, images: Tensor, rows: Tensor, labels: Tensor) -> None:
        self._images, self._rows, self._labels = images, rows, labels
        self.ids: list[int] = rows.tolist()
        self.labels: list[int] = labels.tolist()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._images[self.ids[index]], self.labels[index]

    def batch_of(self, rows: Tensor) -> Batch:
        """The batch of these points at once."""
        return self._images[self._rows[rows]], self._labels[rows]


@dataclass(frozen=True)
class Split:
    """Rows of the stack that the three sets take."""

    train: Tensor
    query: Tensor
    holdout: Tensor


@dataclass(frozen=True)
class Stack:
    """All images `[N, side * side]`, true labels `[N]`, labels with the planted errors `[N]`, and the sets."""

    images: Tensor
    true: Tensor
    given: Tensor
    split: Split


def with_copies(stack: Stack, share: float, generator: torch.Generator) -> Stack:
    """Replace a share of the train points by exact copies of others, which get rows of their own at the stack's end.

    Args:
        stack: Without copies.
        share: Of the train points that are copies, each of another point and with its label.
        generator: Draws them.

    Raises:
        ValueError: More than half would be copies.
    """
    train = stack.split.train
    count = round(share * len(train))
    if share < 0 or 2 * count > len(train):
        raise ValueError(f"copies = {share}: give a share from 0 to 0.5")
    if not count:
        return stack
    replaced, sources = torch.randperm(len(train), generator=generator)[: 2 * count].chunk(2)
    stays = torch.ones(len(train), dtype=torch.bool)
    stays[replaced] = False
    rows = train[sources]
    added = torch.arange(len(stack.images), len(stack.images) + count)
    return Stack(
        images=torch.cat([stack.images, stack.images[rows]]),
        true=torch.cat([stack.true, stack.true[rows]]),
        given=torch.cat([stack.given, stack.given[rows]]),
        split=replace(stack.split, train=torch.cat([train[stays], added])),
    )


class ImageWorkload:
    """A workload without its model.

    Args:
        stack: The images; train points and queries carry the given labels, holdout points the true ones.
        hidden: Widths of the dense layers before the last.
    """

    def __init__(self, stack: Stack, hidden: tuple[int, ...]) -> None:
        self._images, self._true, self._given, self._split = stack.images, stack.true, stack.given, stack.split
        self._hidden = hidden

    def variants(self) -> Mapping[str, ImageWorkload]:
        """The same data with a narrower, wider, shallower and deeper model; none of a model without hidden layers."""
        widths = self._hidden
        if not widths:
            return {}
        return {
            "half the width": self._with(tuple(-(-width // 2) for width in widths)),
            "twice the width": self._with(tuple(2 * width for width in widths)),
            "a layer less": self._with(widths[:-1]),
            "a layer more": self._with((*widths, widths[-1])),
        }

    def _with(self, hidden: tuple[int, ...]) -> ImageWorkload:
        other = copy.copy(self)
        other._hidden = hidden
        return other

    def points(self) -> ImageSet:
        """The train set, errors included."""
        return self._set(self._split.train, self._given)

    def queries(self) -> ImageSet:
        """The images that influence is measured on."""
        return self._set(self._split.query, self._given)

    def holdout(self) -> ImageSet:
        """Clean images that judge."""
        return self._set(self._split.holdout, self._true)

    def inputs(self, batch: Batch) -> Tensor:
        """Pixels in `[0, 1]`: `[B, side * side]`."""
        return batch[0]

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Class scores `[B, C]`."""
        scores: Tensor = model(self.inputs(batch))
        return scores

    def labels(self, batch: Batch) -> Tensor:
        """Given labels `[B]`."""
        return batch[1]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy of each point in nats `[B]`."""
        return F.cross_entropy(self.logits(model, batch), batch[1], reduction="none")

    def describe(self, point_id: int) -> bytes:
        """The image as a PNG, dark on white."""
        from PIL import Image

        [pixels] = self.inputs((self._images[[point_id]], self._true[[point_id]]))
        side = round(len(pixels) ** 0.5)
        grey = ((1 - pixels) * 255).round().byte().view(side, side)
        shown = (side * (PICTURE // side),) * 2
        out = io.BytesIO()
        Image.fromarray(grey.numpy()).resize(shown, Image.Resampling.NEAREST).save(out, "PNG")
        return out.getvalue()

    def describe_query(self, query_id: int) -> bytes:
        """The same: all sets are of one stack."""
        return self.describe(query_id)

    def facets(self) -> Mapping[str, Sequence[float]]:
        """How much ink each image of the train set has: its mean pixel."""
        rows = self._split.train
        return {"ink": self.inputs((self._images[rows], self._true[rows])).mean(1).tolist()}

    def truth(self) -> Mapping[int, int]:
        """The true label of every train point."""
        rows = self._split.train
        return dict(zip(rows.tolist(), self._true[rows].tolist(), strict=True))

    def _set(self, rows: Tensor, labels: Tensor) -> ImageSet:
        return ImageSet(self._images, rows, labels[rows])


def perceptron(*widths: int) -> list[nn.Module]:
    """Dense layers of these widths, from the inputs to the logits, with rectified linear units between them."""
    layers: list[nn.Module] = []
    for wide, narrow in pairwise(widths):
        layers += [nn.Linear(wide, narrow), nn.ReLU()]
    return layers[:-1]
