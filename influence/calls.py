"""What a call of a layer says of the factors of its per-point gradients: the contract that every layout keeps."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from influence.errors import InfluenceError


@dataclass(frozen=True)
class Call:
    """One call of a module.

    Attributes:
        arguments: by position.
        keywords: by name.
        output: what it returned, detached, [B, ...].
    """

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    output: Tensor

    def input(self, dimensions: int) -> Tensor:
        """What a layer of torch.nn was given, detached.

        Raises:
            InfluenceError: it has fewer dimensions, so that none of them is the batch.
        """
        given: Tensor = self.arguments[0] if self.arguments else self.keywords["input"]
        if given.ndim < dimensions:
            raise InfluenceError(f"an input of shape {list(given.shape)} has no batch dimension; select other blocks")
        return widen(given.detach())


@dataclass(frozen=True)
class Capture:
    """What a call says of the factors of its layer.

    Attributes:
        a: [B, T, i].
        columns: turns the gradient at the layer's output into g [B, T, o].
    """

    a: Tensor
    columns: Callable[[Tensor], Tensor]


class Layout(Protocol):
    """The shape of a block and the reading of a call."""

    @property
    def shape(self) -> tuple[int, int]:
        """Of the block matrix, (o, i)."""

    @property
    def free(self) -> bool:
        """Whether the input basis is the identity, whatever the data."""

    def read(self, call: Call) -> Capture:
        """What the forward pass says; nothing that the model changes later in place."""


def widen(x: Tensor) -> Tensor:
    """Half precision as float32; anything else as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32)) if x.is_floating_point() else x


def sequence(x: Tensor) -> Tensor:
    """All dimensions between the first and the last as one of positions."""
    return x.reshape(x.shape[0], -1, x.shape[-1])  # [B, features] or [B, ..., features] -> [B, T, features]


def identity(like: Tensor, points: int, size: int) -> Tensor:
    """The inputs of a block without input statistics, [B, i, i]."""
    return torch.eye(size, dtype=like.dtype, device=like.device).expand(points, size, size)
