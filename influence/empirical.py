"""Empirical influence: fine-tune on one point, and see what the loss of every query does.

An oracle without theory, for small models (arXiv 2406.00509). Each point makes the model a copy of its own,

    I[i, q] = loss_q(theta) - loss_q(theta_i),  theta_i = theta after some steps of SGD on the loss of point i alone,

positive = helpful: training on the point lowers the query's loss; nats. For one small step it is the rate times the
inner product of the gradients. `desiderata` says how far influence behaves as its users expect.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Generic

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils._pytree import tree_map

from influence.errors import InfluenceError
from influence.reading import Batch, Task
from influence.refusals import refuse_training
from influence.tokens import point_losses
from influence.unfused import unfused
from influence.validation import spearman

TOP = 0.1  # of the points, whose share of all influence on a query is its sparseness
COPIES = 1 << 24  # parameters of models that are fine-tuned at a time
Values = dict[str, Tensor]


@dataclass(frozen=True)
class Desiderata:
    """How influence of points on each other behaves.

    Attributes:
        decay: rank correlation of |influence| with distance, pairs of different points; negative = near points matter.
        sparseness: mean share of a query's |influence| that the top 10 % of the points hold; 0.1 = all the same.
        invariance: rank correlation with the influence of the same points under noise.
        symmetry: rank correlation of I[i, j] with I[j, i].
    """

    decay: float
    sparseness: float
    invariance: float
    symmetry: float


def empirical_influence(
    model: nn.Module,
    task: Task[Batch],
    points: Iterable[Batch],
    queries: Sequence[Batch],
    rate: float,
    steps: int = 1,
) -> Tensor:
    """Fall of every query's loss by fine-tuning on each point alone.

    Args:
        model: in evaluation mode; never changed. In float64 where the falls are small: they are differences of losses.
        task: how it is asked; a function of the batch that can be traced (`torch.func`).
        points: batches of the n points, tensors in any nesting whose first dimension is the points.
        queries: batches of the m queries.
        rate: learning rate, positive.
        steps: at least 1.

    Returns:
        Nats, positive = helpful, [n, m].
    """
    refuse_training(model)
    if not (isfinite(rate) and rate > 0) or steps < 1:
        raise InfluenceError(f"rate {rate}, {steps} steps: fine-tuning needs a positive rate and at least 1 step")
    if not queries:
        raise InfluenceError("no query given to read the loss of")
    losses = _Losses(model, task)
    start = {name: value.detach() for name, value in losses.named_parameters()}
    chunk = max(1, COPIES // sum(value.numel() for value in start.values()))

    def all_queries(values: Values) -> Tensor:
        return torch.cat([losses.at(values, batch) for batch in queries])  # [m]

    def falls(point: Batch) -> Tensor:
        alone = tree_map(lambda leaf: leaf[None], point)
        values = start
        for _ in range(steps):
            gradient = grad(lambda given: losses.at(given, alone)[0])(values)
            values = {name: value - rate * gradient[name] for name, value in values.items()}
        return before - all_queries(values)

    with unfused():
        before = all_queries(start)
        found = [vmap(falls, chunk_size=chunk)(batch) for batch in points]
    if not found:
        raise InfluenceError("no point given to fine-tune on")
    return torch.cat(found)


def desiderata(influence: Tensor, distances: Tensor, noisy: Tensor) -> Desiderata:
    """What influence of n points on each other says of itself.

    Args:
        influence: [n, n].
        distances: of the points, in a space where near means alike, [n, n].
        noisy: influence of the points with noise on their inputs, on the points as they are, [n, n].
    """
    return Desiderata(
        decay(influence, distances),
        sparseness(influence),
        spearman(_others(influence), _others(noisy)),
        symmetry(influence),
    )


def decay(influence: Tensor, distances: Tensor) -> float:
    """Rank correlation of |influence| with distance, over pairs of different points; both [n, n]."""
    return spearman(_others(influence.abs()), _others(distances))


def sparseness(influence: Tensor) -> float:
    """Mean over queries of the share of |influence| that the top 10 % of the points hold, [n, m]."""
    sizes = influence.abs().sort(0, descending=True).values
    return float((sizes[: max(1, round(TOP * len(sizes)))].sum(0) / sizes.sum(0)).mean())


def symmetry(influence: Tensor) -> float:
    """Rank correlation of I[i, j] with I[j, i] over pairs of different points, [n, n]."""
    return spearman(_others(influence), _others(influence.T))


class _Losses(nn.Module, Generic[Batch]):
    """The losses of a batch as a module, which is what `functional_call` takes."""

    def __init__(self, model: nn.Module, task: Task[Batch]) -> None:
        super().__init__()
        self.model, self._task = model, task

    def forward(self, batch: Batch) -> Tensor:
        return point_losses(self._task.logits(self.model, batch), self._task.labels(batch))

    def at(self, values: Values, batch: Batch) -> Tensor:
        """[B], under other values of the parameters."""
        found: Tensor = functional_call(self, values, (batch,))
        return found


def _others(matrix: Tensor) -> Tensor:
    """The entries off the diagonal, [n (n - 1)], row by row."""
    return matrix[~torch.eye(len(matrix), dtype=torch.bool)]
