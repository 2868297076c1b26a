"""Learning by ignoring: weights of the train points that one step of training should have had, for the queries' sake.

Zhang et al. 2020 (arXiv 2012.14288), in one bilevel step. Training on weighted points, theta' = theta - (rate / n)
sum_i a_i g_i(theta), makes the loss of a query depend on each weight, and

    I[i, q] = -d loss_q(theta') / d a_i = (rate / n) g_q(theta') . g_i(theta)

is the rise of the query's loss, to first order, if the step ignores the point (a_i from 1 to 0): positive = helpful,
nats. For a small rate it is the rate times gradient dot; no curvature of more than one step is in it.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from math import isfinite

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from influence.blocks import Blocks
from influence.errors import InfluenceError
from influence.factored import Gradients, dots, total
from influence.queries import group_means
from influence.reader import Reader
from influence.reading import Batch, Task
from influence.refusals import refuse_training


def ignoring_influence(
    model: nn.Module,
    task: Task[Batch],
    blocks: Blocks,
    train: Sequence[Batch],
    queries: Iterable[Batch],
    groups: Tensor,
    rate: float,
    weights: Tensor | None = None,
) -> Tensor:
    """What one step of training on each point does for the mean loss of each group of queries.

    Args:
        model: in evaluation mode; as it was on return.
        task: how it is asked.
        blocks: what the step moves; their parameters require gradients.
        train: batches of the n train points.
        queries: batches of the m queries.
        groups: group of each query, [m], int64 from 0 without gaps; `arange(m)` for every query by itself.
        rate: learning rate of the step, positive.
        weights: a, [n]; None for all 1.

    Returns:
        Nats, positive = helpful, [n, groups], float64.
    """
    refuse_training(model)
    if not (isfinite(rate) and rate > 0):
        raise InfluenceError(f"rate {rate}: a step of training needs a positive learning rate")
    if not len(groups) or len(groups.unique()) != int(groups.max()) + 1:
        raise InfluenceError("groups of queries count from 0 without gaps; give at least one query")
    labels = [task.labels(batch) for batch in train]
    count = sum(map(len, labels))
    a = torch.ones(count) if weights is None else weights
    if not count or len(a) != count:
        raise InfluenceError(f"{len(a)} weights for {count} train points: give points, and a weight for each")
    parameters = list(dict.fromkeys(p for block in blocks for p in block.module.parameters(recurse=False)))
    gradients = [torch.zeros_like(parameter) for parameter in parameters]
    for batch, y, part in zip(train, labels, a.split([len(y) for y in labels]), strict=True):
        losses = cross_entropy(task.logits(model, batch), y, reduction="none")  # [B]
        for sums, one in zip(gradients, torch.autograd.grad(losses @ part.to(losses) / count, parameters)):
            sums += one
    with Reader(model, task, blocks) as reader:
        with _stepped(parameters, gradients, rate):
            ahead = group_means(map(reader.queries, queries), groups, int(groups.max()) + 1).gradients
        return torch.cat([_dots(reader, batch, ahead) for batch in train]) * (rate / count)


def soft_pruning(
    model: nn.Module,
    task: Task[Batch],
    blocks: Blocks,
    train: Sequence[Batch],
    queries: Sequence[Batch],
    rate: float,
    steps: int,
    change: float = 0.1,
) -> Tensor:
    """Weights of the train points after some steps of projected gradient on the mean query loss, [n], in [0, 1].

    The model is the same throughout; only the step of training that follows from the weights is not.

    Args:
        model: as for `ignoring_influence`, like what is not told here.
        task: how it is asked.
        blocks: what the step of training moves.
        train: batches of the n train points.
        queries: batches of the queries.
        rate: learning rate of the step of training.
        steps: how often the weights are changed.
        change: root mean square of each change, before weights that leave [0, 1] are brought back.
    """
    if steps < 1 or not (isfinite(change) and change > 0):
        raise InfluenceError(f"{steps} steps of size {change}: give at least 1, and a positive size")
    groups = torch.zeros(sum(len(task.labels(batch)) for batch in queries), dtype=torch.int64)
    weights = torch.ones(sum(len(task.labels(batch)) for batch in train), dtype=torch.float64)
    for _ in range(steps):
        gain = ignoring_influence(model, task, blocks, train, queries, groups, rate, weights)[:, 0]  # [n]
        size = gain.square().mean().sqrt()
        if size == 0:
            break
        weights = (weights + change * gain / size).clamp(0, 1)
    return weights


def _dots(reader: Reader[Batch], batch: Batch, gradients: Gradients) -> Tensor:
    """Inner products of the loss gradients of B points with k others, [B, k]."""
    return total(reader.losses(batch).losses, lambda name, factor: dots(factor, gradients[name]))


@contextmanager
def _stepped(parameters: Sequence[Tensor], gradients: Sequence[Tensor], rate: float) -> Iterator[None]:
    """Inside, the parameters have made a step down their gradients."""
    before = [parameter.detach().clone() for parameter in parameters]
    try:
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= rate * gradient
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)
