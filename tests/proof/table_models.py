"""The networks of the estimators' tables that are no perceptrons, and their training: one model at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu

from tests.proof.lds_models import BATCH, CLASSES, MOMENTUM, SHARES, Recipe

SIDE = 28
WIDTH, HEADS, LAYERS = 32, 2, 2
Around = Callable[[nn.Module, Tensor, Tensor, float], AbstractContextManager[object]]
"""Of a step: model, inputs and rows of its batch, learning rate."""


def cnn() -> nn.Sequential:
    """Two convolutions of 16 and 32 channels with stride 2, and a hidden layer of 64."""
    return nn.Sequential(
        nn.Unflatten(1, (1, SIDE, SIDE)),
        *(nn.Conv2d(1, 16, 3, stride=2), nn.ReLU()),  # [B, 16, 13, 13]
        *(nn.Conv2d(16, 32, 3, stride=2), nn.ReLU()),  # [B, 32, 6, 6]
        *(nn.Flatten(), nn.Linear(32 * 6 * 6, 64), nn.ReLU(), nn.Linear(64, CLASSES)),
    )


class Layer(nn.Module):
    """Pre-norm attention of two heads and a perceptron of twice the width."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, width] -> the same."""
        q, k, v = self.qkv(self.attention_norm(x)).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)  # [B, heads, T, T]
        x = x + self.out((weights @ v).transpose(1, 2).flatten(2))
        y: Tensor = x + self.down(relu(self.up(self.mlp_norm(x))))
        return y


class Rows(nn.Module):
    """A transformer that reads an image as 28 tokens, its rows; mean over tokens, then the head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Linear(SIDE, WIDTH)
        self.position = nn.Parameter(0.1 * torch.randn(SIDE, WIDTH))
        self.layers = nn.Sequential(*(Layer() for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits [B, C] of [B, 784]."""
        tokens = self.layers(self.embedding(pixels.unflatten(1, (SIDE, SIDE))) + self.position)
        logits: Tensor = self.head(self.norm(tokens).mean(1))
        return logits


def train_one(
    network: Callable[[], nn.Module],
    recipe: Recipe,
    inputs: Tensor,
    labels: Tensor,
    rows: Tensor,
    seed: int,
    around: Around = lambda model, inputs, rows, rate: nullcontext(),
) -> list[nn.Module]:
    """Train one model by the recipe on some rows, as `lds_models.train` does many.

    Args:
        network: Its architecture.
        recipe: SGD with momentum.
        inputs: Of all points, [n, d].
        labels: [n].
        rows: Of the points it sees, [k].
        seed: Of the initial weights and the order of the points.
        around: What every forward and backward pass runs in.

    Returns:
        The model after 25, 50, 75 and 100 % of the steps, in evaluation mode.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = network()
    solver = torch.optim.SGD(model.parameters(), recipe.rate, MOMENTUM, weight_decay=recipe.weight_decay)
    generator = torch.Generator().manual_seed(seed)
    rates = recipe.rates(len(rows))
    saved, at = [], {round(share * len(rates)) for share in SHARES}
    batches: list[Tensor] = []
    for step, rate in enumerate(rates, start=1):
        if not batches:
            batches = list(rows[torch.randperm(len(rows), generator=generator)].split(BATCH))[::-1]
        some = batches.pop()
        solver.param_groups[0]["lr"] = rate
        solver.zero_grad()
        with around(model, inputs[some], some, rate):
            cross_entropy(model(inputs[some]), labels[some]).backward()
        solver.step()
        if step in at:
            saved.append(copy.deepcopy(model).eval().requires_grad_(False))
    return saved


def said(models: Sequence[nn.Module], inputs: Tensor) -> Tensor:
    """Logits of every model, [M, m, C]."""
    with torch.no_grad():
        return torch.stack([model(inputs) for model in models])
