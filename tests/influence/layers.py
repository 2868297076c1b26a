"""One layer of any kind in a small model, and its per-point gradients by torch.func. Float64, seeded."""

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.nn.functional import cross_entropy

from influence import Block, Blocks, Factors, FactorSource, available, by_name, materialise, select
from influence.layouts import AnyLayout, EmbeddingLayout, NormLayout, TransposedLayout
from influence.sparse import TableFactor

ROUNDING = 1e-10  # float64; gradients are of order 1
POINTS = 5
Batch = tuple[Tensor, Tensor]


class Model(nn.Module):
    """A layer between something below it and a mean over positions; the head is above."""

    def __init__(self, layer: nn.Module, below: nn.Module | None = None, *, channels: bool = False) -> None:
        super().__init__()
        self.below, self.layer, self.channels = below or nn.Identity(), layer, channels
        self.head = nn.LazyLinear(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.layer(self.below(x)))

    def classify(self, h: Tensor) -> Tensor:
        h = h.tanh().flatten(2) if self.channels else h.tanh().flatten(1, -2).mT if h.ndim > 2 else h[:, :, None].tanh()
        return self.head(torch.cat([h.mean(2), h.square().mean(2)], 1))  # [B, features, positions] -> [B, 3]


def made(model: Model, *shape: int, tokens: int | None = None) -> tuple[Model, Batch]:
    """The model with random weights and statistics, and random points."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(POINTS, *shape, generator=generator, dtype=torch.float64)
    if tokens is not None:
        x = torch.randint(tokens, (POINTS, *shape), generator=generator)
    model.double().eval()(x)  # makes the head
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator) - (0.0 if name.endswith("running_var") else 0.5))
    return model, (x, torch.arange(POINTS) % 3)


def loss(model: nn.Module, batch: Batch) -> Tensor:
    return cross_entropy(model(batch[0]), batch[1], reduction="none")


def as_matrix(block: Block, gradients: dict[str, Tensor]) -> Tensor:
    """Gradients of the block's own parameters by name, as its matrix [o, i]."""
    if isinstance(block.layout, AnyLayout):
        return torch.cat([gradient.flatten() for gradient in gradients.values()])[:, None]
    if isinstance(block.layout, TransposedLayout):
        return torch.cat([gradients["weight"].T, gradients["bias"][:, None]], 1)
    if isinstance(block.layout, EmbeddingLayout):
        return gradients["weight"].T
    if isinstance(block.layout, NormLayout):
        return torch.stack([gradient.flatten() for gradient in gradients.values()], 1)
    return torch.cat(
        [gradient.flatten(1) if name == "weight" else gradient[:, None] for name, gradient in gradients.items()], 1
    )


def per_point(model: nn.Module, block: Block, batch: Batch) -> Tensor:
    """One point at a time through the whole model, [B, o, i]."""
    prefix = "" if block.module is model else f"{block.name}."
    own = {name: value.detach() for name, value in block.module.named_parameters(recurse=False)}

    def one(values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        named = {prefix + name: value for name, value in values.items()}
        return cross_entropy(functional_call(model, named, (x[None],)), y[None])

    return torch.stack([as_matrix(block, grad(one)(own, x, y)) for x, y in zip(*batch)])


def pulled(model: nn.Module, batch: Batch, blocks: Blocks | None = None) -> Factors:
    """Of the losses, for some blocks or all."""
    with FactorSource(model, blocks or available(model)) as source:
        return source.pull(source.forward(loss, batch))


def assert_equal(found: Factors, expected: Factors, atol: float = 0.0) -> None:
    assert list(found) == list(expected)
    for name, factor in found.items():
        torch.testing.assert_close(factor.g, expected[name].g, rtol=0, atol=atol)
        torch.testing.assert_close(factor.a, expected[name].a, rtol=0, atol=atol)


def check(model: nn.Module, batch: Batch, name: str = "layer") -> Block:
    """Compare one block, alone and among all; return it."""
    (block,) = select(model, by_name(name))
    truth = per_point(model, block, batch)
    assert truth.abs().max() > 1e-4
    for blocks in ((block,), None):
        factor = pulled(model, batch, blocks)[name]
        assert factor.elements == block.parameters
        torch.testing.assert_close(materialise(factor), truth, rtol=0, atol=ROUNDING)
    return block


def dense(factor: TableFactor) -> Tensor:
    """[B, d, V], row by row."""
    full = torch.zeros(len(factor), *factor.shape, dtype=torch.float64)
    for point, (rows, values) in enumerate(zip(factor.inputs, factor.g)):
        for row, value in zip(rows.tolist(), values):
            if row >= 0:
                assert not full[point, :, row].any(), "each row once"
                full[point, :, row] = value
    return full


class Scaled(nn.Module):
    """Parameters of its own, also by keyword and with an argument that all points share."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.power = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, shared: Tensor | None = None, *, shift: Tensor | float = 0.0) -> Tensor:
        y = torch.tanh(x * self.scale + shift) * self.power.exp()
        return y if shared is None else y @ shared
