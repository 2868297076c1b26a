"""What is measured on: random but class-structured data and models trained a little on them, the same at every run.

Images are class means plus noise, both with the 1/f spectrum of natural images, and tokens are drawn from a class's own
words or from all; 5 % of the train labels are wrong. A setup is made once and kept under build/bench, so that no timed
or counted section makes data or trains.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tests.benchmarks.models import Transformer, cnn, mlp

ROOT = Path(__file__).parents[2]
GROUPS = 10
TOKENS, LENGTH = 1000, 128
Batch = tuple[Tensor, Tensor]  # inputs [B, ...], labels [B]
Maker = Callable[[int, Tensor, torch.Generator], Tensor]  # classes, labels, generator -> inputs


@dataclass(frozen=True)
class Data:
    """Labelled points.

    Attributes:
        inputs: [n, ...].
        labels: [n], int64.
    """

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, size: int) -> Iterator[Batch]:
        """All points in order."""
        return zip(self.inputs.split(size), self.labels.split(size), strict=True)

    def first(self, count: int) -> Data:
        """The first points."""
        return Data(self.inputs[:count], self.labels[:count])


@dataclass(frozen=True)
class Setup:
    """A trained model with its points.

    Attributes:
        name: key of `RECIPES`.
        model: in evaluation mode, every weight trainable.
        train: n points.
        queries: m points; their group is their label modulo 10.
    """

    name: str
    model: nn.Module
    train: Data
    queries: Data

    def first(self, points: int, queries: int) -> Setup:
        """The same model with the first points and queries."""
        return Setup(self.name, self.model, self.train.first(points), self.queries.first(queries))

    @property
    def groups(self) -> Tensor:
        """Group of each query, [m], int64."""
        return self.queries.labels % GROUPS

    @property
    def blocks(self) -> list[str]:
        """Every linear and convolutional layer, in model order."""
        return [name for name, module in self.model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]


@dataclass(frozen=True)
class Recipe:
    """How a setup is made: its model, its inputs, its sizes and its training."""

    model: Callable[[], nn.Module]
    inputs: Maker
    classes: int
    points: int
    queries: int
    epochs: int


def logits(model: nn.Module, batch: Batch) -> Tensor:
    """[B, C]."""
    return model(batch[0])


def losses(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of each point, nats, [B]."""
    return cross_entropy(model(batch[0]), batch[1], reduction="none")


def load(name: str) -> Setup:
    """A setup, made and trained at its first use."""
    recipe = RECIPES[name]
    source = b"".join(Path(__file__).with_name(file).read_bytes() for file in ("setups.py", "models.py"))
    path = ROOT / "build" / "bench" / f"{name}-{hashlib.sha256(source).hexdigest()[:12]}.pt"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(_make(recipe), path)
    kept = torch.load(path)
    model = recipe.model().eval()
    model.load_state_dict(kept["model"])
    return Setup(name, model, Data(*kept["train"]), Data(*kept["queries"]))


def _make(recipe: Recipe) -> dict[str, object]:
    generator = torch.Generator().manual_seed(0)
    n = recipe.points
    popularity = 1 / torch.arange(1, recipe.classes + 1) if recipe.classes > GROUPS else torch.ones(recipe.classes)
    labels = torch.multinomial(popularity, n + recipe.queries, replacement=True, generator=generator)
    inputs = recipe.inputs(recipe.classes, labels, generator)
    wrong = torch.rand(n, generator=generator) < 0.05
    labels[:n][wrong] = torch.multinomial(popularity, int(wrong.sum()), replacement=True, generator=generator)
    train = Data(inputs[:n], labels[:n])
    model = _train(recipe, train, generator)
    return {"model": model.state_dict(), "train": (*vars(train).values(),), "queries": (inputs[n:], labels[n:])}


def _train(recipe: Recipe, train: Data, generator: torch.Generator) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = recipe.model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    for _ in range(recipe.epochs):
        for rows in torch.randperm(len(train), generator=generator).split(64):
            optimizer.zero_grad()
            losses(model, (train.inputs[rows], train.labels[rows])).mean().backward()
            optimizer.step()
    return model


def images(classes: int, labels: Tensor, generator: torch.Generator) -> Tensor:
    """[n, 1, 28, 28]."""
    means = _natural(classes, generator)
    noise = _natural(len(labels), generator)
    return 0.22 * means[labels] + noise + 0.1 * torch.randn(noise.shape, generator=generator)


def _natural(count: int, generator: torch.Generator) -> Tensor:
    frequency = torch.cartesian_prod(torch.fft.fftfreq(28), torch.fft.fftfreq(28)).norm(dim=1).view(28, 28)
    white = torch.fft.fft2(torch.randn(count, 1, 28, 28, generator=generator))
    image = torch.fft.ifft2(white / frequency.clamp(min=1 / 28)).real
    return image / image.std()


def tokens(classes: int, labels: Tensor, generator: torch.Generator) -> Tensor:
    """[n, 128]: each token is one of 16 words of the class with probability 1/4."""
    words = torch.randint(TOKENS, (classes, 16), generator=generator)
    choice = torch.randint(16, (len(labels), LENGTH), generator=generator)
    own = words[labels].gather(1, choice)
    return torch.where(
        torch.rand(own.shape, generator=generator) < 0.25, own, torch.randint(TOKENS, own.shape, generator=generator)
    )


RECIPES = {
    "mlp": Recipe(lambda: mlp(784, 512, 256, 10), images, 10, 10_000, 1_000, epochs=2),
    "cnn": Recipe(cnn, images, 10, 10_000, 1_000, epochs=5),
    "transformer": Recipe(lambda: Transformer(TOKENS, LENGTH, 1000), tokens, 1000, 2_000, 1_000, epochs=2),
    "pairwise": Recipe(lambda: mlp(784, 64, 32, 10), images, 10, 1_000, 100, epochs=10),
    "large": Recipe(lambda: mlp(784, 512, 256, 10), images, 10, 20_000, 100, epochs=2),
}
