"""What a model is asked, and what one batch of points answers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor, nn

from influence.factored import Factors
from influence.memorization import CheapSignals
from influence.tokens import signals_of

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class Task(Generic[Batch]):
    """How a model is asked: its loss is the cross-entropy of the logits, of a text the mean over its tokens (`tokens`).

    Attributes:
        logits: (model, batch) -> [B, C]; of texts [B, T, V].
        labels: batch -> given labels, [B], int64; of texts the target at each position, [B, T], -100 for none.
    """

    logits: Callable[[nn.Module, Batch], Tensor]
    labels: Callable[[Batch], Tensor]


@dataclass(frozen=True)
class Reading:
    """What one batch of B points gave.

    Attributes:
        logits: [B, C], float32 or float64; of texts, which would take too much, [B, 0].
        labels: [B]; of texts [B, T].
        losses: gradients of the losses, g of shape [B, T, o].
        roots: Fisher roots on the same inputs a, g of shape [R, B, T, o]; None where they were not asked for.
        of_tokens: what is kept of the logits of texts (`Tokens.signals`), [5, B].
    """

    logits: Tensor
    labels: Tensor
    losses: Factors
    roots: Factors | None = None
    of_tokens: Tensor | None = None

    @property
    def signals(self) -> CheapSignals:
        """What the forward pass said of each point."""
        return signals_of(self.logits, self.labels, self.of_tokens)
