"""What a classifier is asked, and what one batch of points answers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor, nn

from influence.factored import Factors

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class Task(Generic[Batch]):
    """How a classifier is asked: its loss is the cross-entropy of the logits.

    Attributes:
        logits: (model, batch) -> [B, C].
        labels: batch -> given labels, [B], int64.
    """

    logits: Callable[[nn.Module, Batch], Tensor]
    labels: Callable[[Batch], Tensor]


@dataclass(frozen=True)
class Reading:
    """What one batch of B points gave.

    Attributes:
        logits: [B, C], float32 or float64.
        labels: [B].
        losses: gradients of the losses, g of shape [B, T, o].
        roots: Fisher roots on the same inputs a, g of shape [R, B, T, o]; None where they were not asked for.
    """

    logits: Tensor
    labels: Tensor
    losses: Factors
    roots: Factors | None = None
