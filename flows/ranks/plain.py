"""Training in plain torch, in one process and in float32: for models that are many, small and thrown away."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from flows.ranks.order import Order
from flows.ranks.points import Points
from flows.recipe import learning_rate
from flows.sections.training import TrainingConfig
from flows.workload import Workload
from influence.turnover import TurnOver


def train_plainly(
    workload: Workload,
    points: Points,
    training: TrainingConfig,
    places: Tensor,
    seed: int,
    steps: int,
    save_at: Collection[int],
    saved: Callable[[nn.Module], None],
    planned: int | None = None,
    after: Callable[[int], None] | None = None,
) -> None:
    """Train a new model by the recipe of the cycle, without DeepSpeed.

    Args:
        workload: Model and loss.
        points: The train set; the model is trained where its batches are.
        training: The recipe.
        places: Places of the points that the model sees.
        seed: Of the initial weights, the order of the points, their masks and whatever the model draws.
        steps: Optimizer steps.
        save_at: Steps after which `saved` is called.
        saved: Called with the model in evaluation mode, without gradients.
        planned: Steps of the learning rates' schedule; default: `steps`.
        after: Called after each step.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = workload.model().to(points.device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay)
        order = Order(places, training.batch_size, seed)
        masks = TurnOver(model, training.turn_over, seed)
        for step in range(1, steps + 1):
            optimizer.zero_grad()
            optimizer.param_groups[0]["lr"] = learning_rate(training, step, planned or steps)
            batch = order.next()
            with masks.own(points.keys[batch]) if training.turn_over else nullcontext():
                workload.loss(model, points.take(batch)).mean().backward()
            if training.clipping:
                nn.utils.clip_grad_norm_(model.parameters(), training.clipping)
            optimizer.step()
            if step in save_at:
                _show(model, saved)
            if after is not None:
                after(step)


def _show(model: nn.Module, saved: Callable[[nn.Module], None]) -> None:
    model.eval()
    with torch.no_grad():
        saved(model)
    model.train()
