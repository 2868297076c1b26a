"""Layers without per-point gradients are refused with a line that says which and why."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from influence import InfluenceError, NotPerPoint
from tests.influence.layers import POINTS, pulled


class Total(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x.sum() * self.scale


class Increasing(Total):
    def forward(self, x: Tensor) -> Tensor:
        return x.add_(10) * self.scale


class Centring(Total):
    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(0)) * self.scale


class Given(nn.Module):
    """Calls a layer as a function says, and returns logits from what it returns."""

    def __init__(self, layer: nn.Module, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self._call = layer, call

    def forward(self, x: Tensor) -> Tensor:
        return x + self._call(self.layer, x)


REFUSED: dict[str, tuple[nn.Module, Callable[[Any, Tensor], Tensor], str]] = {
    "convolution that wraps": (
        nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular"),
        lambda layer, x: layer(x[:, None])[:, 0],
        "block 'layer': padding_mode 'circular'",
    ),
    "large norm": (nn.LayerNorm(5000), lambda layer, x: layer(x.repeat(1, 1250))[:, :4], "normalisation of 5000"),
    "large own": (nn.PReLU(5000), lambda layer, x: layer(x.repeat(1, 1250))[:, :4], "PReLU with 5000 parameters of"),
    "no batch": (nn.Linear(4, 4), lambda layer, x: layer(x[0]), r"an input of shape \[4\] has no batch dimension"),
    "no batch, convolution": (nn.Conv1d(1, 1, 1), lambda layer, x: layer(x[:1]), r"shape \[1, 4\] has no batch"),
    "several outputs": (nn.LSTM(4, 4), lambda layer, x: layer(x[:, None])[0][:, 0], "'layer' returns a tuple, not a"),
    "one output": (Total(), lambda layer, x: layer(x), "returns a single number, not a tensor"),
    "changes its input": (
        Increasing(),
        lambda layer, x: layer(x + 0),
        "Increasing cannot go through torch.func: .* in-p",
    ),
    "mixes points": (Centring(), lambda layer, x: layer(x), "Centring gives a point another output alone than in its"),
    "under no_grad": (nn.Linear(4, 4), torch.no_grad()(lambda layer, x: layer(x)), "'layer' is called under no_grad"),
    "never called": (nn.Linear(4, 4), lambda layer, x: x, "block 'layer' is not called in the forward pass"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_layer_without_per_point_gradients_is_refused(case: str) -> None:
    layer, call, message = REFUSED[case]
    model, batch = Given(layer, call), (torch.randn(POINTS, 4), torch.arange(POINTS) % 4)
    with pytest.raises(InfluenceError, match=message):
        pulled(model, batch)


class PositionsFirst(nn.Module):
    """Hands its layer [T, B, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.transpose(0, 1)).mean(0)


@pytest.mark.parametrize("positions", [POINTS, POINTS + 1])  # as many as points: their numbers do not tell
def test_an_input_that_is_not_batch_first_is_refused(positions: int) -> None:
    model = PositionsFirst()
    with pytest.raises(NotPerPoint, match="first dimension"):
        pulled(model, (torch.randn(POINTS, positions, 4), torch.arange(POINTS) % 4))


def test_a_table_of_positions_that_all_points_share_is_refused() -> None:
    model = Given(nn.Embedding(POINTS, 4), lambda layer, x: layer(torch.arange(POINTS)).sum(0))
    with pytest.raises(NotPerPoint, match="depends on other rows of block 'layer'"):
        pulled(model, (torch.randn(POINTS, 4), torch.arange(POINTS) % 4))
