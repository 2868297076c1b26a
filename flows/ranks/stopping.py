"""When a baseline has been trained long enough: the mean loss on the query set, never the holdout, no longer falls."""

from __future__ import annotations

from torch import nn

from flows.ranks.outcome import Outcome
from flows.sections.training import EarlyStoppingConfig


class Stopping:
    """The decision, the same on every rank.

    Args:
        config: How often the loss is taken, and how often it may fail to fall.
        planned: Steps of the whole training.
        queries: The query set.
        losses: Mean losses taken before the training was interrupted, nats.
    """

    def __init__(self, config: EarlyStoppingConfig, planned: int, queries: Outcome, losses: list[float]) -> None:
        self._every, self._patience = max(1, round(config.every * planned)), config.patience
        self._queries, self.losses = queries, losses

    def after(self, step: int, model: nn.Module) -> bool:
        """Whether to stop after a step; all ranks call this together."""
        if step % self._every:
            return False
        self.losses.append(float(self._queries.of(model)[0].mean()))
        lowest = self.losses.index(min(self.losses))
        return len(self.losses) - 1 - lowest >= self._patience


class Never:
    """The decision of a training that runs as long as it is planned."""

    losses: tuple[float, ...] = ()

    def after(self, step: int, model: nn.Module) -> bool:
        """No."""
        return False
