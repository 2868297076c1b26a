"""What a model in training says of points through its head: one forward pass, whatever its ZeRO stage."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from flows.ranks.evaluation import evaluating
from flows.ranks.partitioned import in_step
from flows.ranks.points import Points
from flows.ranks.rank import Rank
from flows.workload import Workload
from influence import Share, check_cross_entropy
from influence.blocks import Block
from influence.calls import Call
from influence.dropping import HeadPoints
from influence.errors import InfluenceError
from influence.gradients import refuse_non_finite

BATCH = 512


class HeadReader:
    """Reads points in evaluation mode; every rank must call each method together.

    Args:
        head: The last linear layer of the model.
        model: In training.
        workload: Loss and logits.
        rank: This process.
    """

    def __init__(self, head: Block, model: nn.Module, workload: Workload, rank: Rank) -> None:
        self.head, self.rank, self._model, self._workload = head, rank, model, workload

    def check(self, points: Points) -> None:
        """Refuse, on some points, a model or a loss whose gradients in the head are not known from its inputs.

        Raises:
            InfluenceError: The last linear layer does not return the logits, or the loss is not their cross-entropy.
        """
        places = torch.arange(min(BATCH, len(points)))
        read = self._read(points, places)
        with evaluating(self._model):
            losses = self._workload.loss(self._model, points.take(places))
        check_cross_entropy(losses.double(), read.logits, read.labels)

    def parts(self, points: Points, places: Tensor) -> Iterator[tuple[Tensor, HeadPoints]]:
        """This rank's share of the points at these places, batch by batch, each with its places."""
        parts = places.split(BATCH)  # the same on any number of ranks
        mine = Share(self.rank.index, self.rank.world).of(len(parts))
        for done, (part, counts) in enumerate(in_step(mine, self.rank, together=True)):
            self.rank.progress("scoring points in training", min(done, len(mine)), len(mine))
            read = self._read(points, parts[part])
            if counts:
                yield parts[part], read

    def whole(self, points: Points) -> HeadPoints:
        """All points of a set, on every rank."""
        device = self.rank.device
        inputs = torch.zeros(len(points), self.head.weight_shape[1], dtype=torch.float64, device=device)
        logits = torch.zeros(len(points), self.head.weight_shape[0], dtype=torch.float64, device=device)
        for places, read in self.parts(points, torch.arange(len(points))):
            inputs[places], logits[places] = read.inputs, read.logits
        self.rank.sum(inputs)
        self.rank.sum(logits)
        return HeadPoints(inputs, logits, points.labels.to(device))

    def _read(self, points: Points, places: Tensor) -> HeadPoints:
        calls: list[Call] = []

        def hook(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> None:
            calls.append(Call(given, named, output.detach()))

        handle = self.head.module.register_forward_hook(hook, with_kwargs=True)
        with evaluating(self._model), points.named(places):
            logits = self._workload.logits(self._model, points.take(places)).double()
            refuse_non_finite("logits", logits)
        handle.remove()
        return HeadPoints(self._inputs(calls, logits), logits, points.labels[places].to(logits.device))

    def _inputs(self, calls: list[Call], logits: Tensor) -> Tensor:
        """Of the head, `[B, i]`."""
        if len(calls) != 1 or not logits.equal(calls[0].output.double()):
            raise InfluenceError(
                f"training.prune_while_learning: block {self.head.name!r}, the last linear layer, does not return the "
                "logits as they are, so that points cannot be scored by it; leave the key out"
            )
        return self.head.layout.read(calls[0]).a[:, 0].double()
