"""The models of the LDS proof: one perceptron per set of points and seed, many trained side by side.

Weights of M models are one tensor a layer, so that a step of all is a few batched products: a small network costs what
its arithmetic costs, not what its Python calls do. SGD's weight decay is in the gradient, so the models minimise

    mean loss + weight_decay / 2 ||theta||^2,

and `horizon` is the T of `Damping("horizon", T)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypedDict

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from flows.workloads.images import perceptron

CLASSES = 10
HIDDEN = (64, 32)
SHARES = (0.25, 0.5, 0.75, 1.0)
MOMENTUM = 0.9
BATCH = 50
Layers = list[tuple[Tensor, Tensor]]  # weights [M, i, o] and biases [M, 1, o] of each layer


class Given(TypedDict):
    """What another library needs to score with one model, as it is kept in a file."""

    layers: Layers
    points: tuple[Tensor, Tensor]  # inputs [n, d], labels [n]
    queries: tuple[Tensor, Tensor]
    weight_decay: float
    seed: int


@dataclass(frozen=True)
class Recipe:
    """SGD with momentum .9 in batches of 50, the learning rate falling linearly to 0.

    Attributes:
        rate: the learning rate at the start.
        weight_decay: in the gradient, of every parameter.
        epochs: of any set of points: half of the points, half of the steps.
    """

    rate: float
    weight_decay: float
    epochs: int

    def rates(self, points: int) -> list[float]:
        """The learning rate of every step."""
        steps = self.epochs * -(-points // BATCH)
        return [self.rate * (1 - step / steps) for step in range(steps)]

    def horizon(self, points: int) -> float:
        """Sum of the learning rates / (1 - momentum)."""
        return sum(self.rates(points)) / (1 - MOMENTUM)


def train(recipe: Recipe, inputs: Tensor, labels: Tensor, members: Tensor, seeds: Sequence[int]) -> list[Layers]:
    """Train M models, each by its own seed (initial weights, order of the points) on its own points.

    Args:
        recipe: of all.
        inputs: of all points, [n, d].
        labels: [n].
        members: rows of the points of each model, [M, k].
        seeds: [M].

    Returns:
        The weights after 25, 50, 75 and 100 % of the steps.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    layers = _initial((inputs.shape[1], *HIDDEN, CLASSES), generators)
    parameters = [one.requires_grad_() for layer in layers for one in layer]
    solver = torch.optim.SGD(parameters, recipe.rate, MOMENTUM, weight_decay=recipe.weight_decay)
    rates = recipe.rates(members.shape[1])
    saved, at = [], {round(share * len(rates)) for share in SHARES}
    batches: list[Tensor] = []
    for step, rate in enumerate(rates, start=1):
        if not batches:
            order = torch.stack([torch.randperm(members.shape[1], generator=one) for one in generators])
            batches = list(members.gather(1, order).split(BATCH, dim=1))[::-1]
        rows = batches.pop()  # [M, B]
        solver.param_groups[0]["lr"] = rate
        solver.zero_grad()
        losses = cross_entropy(_logits(layers, inputs[rows]).flatten(0, 1), labels[rows].flatten(), reduction="sum")
        (losses / rows.shape[1]).backward()
        solver.step()
        if step in at:
            saved.append([(w.detach().clone(), b.detach().clone()) for w, b in layers])
    return saved


def losses(layers: Layers, inputs: Tensor, labels: Tensor) -> Tensor:
    """Of every model on every query, [M, m]."""
    logits = _logits(layers, inputs.expand(len(layers[0][0]), *inputs.shape))  # [M, m, C]
    return cross_entropy(logits.mT, labels.expand(logits.shape[:2]), reduction="none")


def accuracies(layers: Layers, inputs: Tensor, labels: Tensor) -> Tensor:
    """Of every model, [M]."""
    logits = _logits(layers, inputs.expand(len(layers[0][0]), *inputs.shape))
    return (logits.argmax(2) == labels).float().mean(1)


def module(layers: Layers, number: int) -> nn.Sequential:
    """One of the models, as a plain one."""
    model = nn.Sequential(*perceptron(len(layers[0][0][number]), *HIDDEN, CLASSES))
    linear = [one for one in model if isinstance(one, nn.Linear)]
    with torch.no_grad():
        for one, (weight, bias) in zip(linear, layers, strict=True):
            one.weight.copy_(weight[number].T)
            one.bias.copy_(bias[number, 0])
    return model


def _initial(widths: Sequence[int], generators: Sequence[torch.Generator]) -> Layers:
    """Uniform within 1 / sqrt(inputs), as nn.Linear begins."""
    return [
        (
            torch.stack([(2 * torch.rand(i, o, generator=one) - 1) / i**0.5 for one in generators]),
            torch.stack([(2 * torch.rand(1, o, generator=one) - 1) / i**0.5 for one in generators]),
        )
        for i, o in pairwise(widths)
    ]


def _logits(layers: Layers, x: Tensor) -> Tensor:
    """[M, B, d] -> [M, B, C]."""
    for weight, bias in layers[:-1]:
        x = torch.baddbmm(bias, x, weight).relu()
    return torch.baddbmm(layers[-1][1], x, layers[-1][0])
