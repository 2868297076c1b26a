"""All parameters of a model, whatever its layers are: what a selection of blocks leaves out, measured on a few points.

Gradients come from a plain backward pass for each point, curvature from products through the model: no hooks, no
layouts, and much slower than `reader` on the blocks that have one.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor, nn

from influence.blocks import available
from influence.curvature.iterative import conjugate_gradients
from influence.curvature.joint import runs
from influence.curvature.products import model_product
from influence.errors import InfluenceError
from influence.factored import Gradients
from influence.reading import Batch, Task
from influence.tokens import total_loss
from influence.validation import spearman

TOLERANCE = 1e-3  # of the solutions, within reach of float32: moves influence by < .1 %, rank correlations by < 1e-4


@dataclass(frozen=True)
class Agreement:
    """How influence on some pairs agrees with the truth; None where there is no such number.

    Attributes:
        pairs: rank correlation over all pairs.
        means: rank correlation of influence on the mean of all queries.
        error: ||found - truth|| / ||truth|| over the pairs.
    """

    pairs: float | None
    means: float | None
    error: float | None


def agreement(found: Tensor, truth: Tensor) -> Agreement:
    """Compare influence of the same points on the mean of all queries and on q single ones, both [b, 1 + q].

    Where there is a NaN, nothing is known.
    """
    if found.isnan().any() or truth.isnan().any():
        return Agreement(None, None, None)
    pairs, true_pairs = found[:, 1:], truth[:, 1:]
    return Agreement(
        pairs=_defined(spearman(pairs.flatten(), true_pairs.flatten())),
        means=_defined(spearman(found[:, 0], truth[:, 0])),
        error=_defined(float((pairs - true_pairs).norm() / true_pairs.norm())),
    )


def point_energies(model: nn.Module, task: Task[Batch], points: Iterable[Batch]) -> Tensor:
    """Squared norm of every point's loss gradient, by the block that owns the parameters.

    Frozen parameters have none, and a shared one belongs to its first owner.

    Args:
        model: in evaluation mode.
        task: how it is asked.
        points: batches of one point each.

    Returns:
        [points, blocks], float64, in the order of `available`.
    """
    column = {block.name: place for place, block in enumerate(available(model))}
    learned = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    device = next(model.parameters()).device
    owners = torch.tensor([column[name.rpartition(".")[0] or "model"] for name in learned], dtype=torch.int64)
    rows = [torch.zeros(0, len(column), dtype=torch.float64, device=device)]
    for batch in points:
        gradients = _gradients(model, task, [batch], learned)
        squares = torch.stack([gradient.double().square().sum() for gradient in gradients.values()])
        rows.append(squares.new_zeros(1, len(column)).index_add_(1, owners.to(device), squares[None]))
    return torch.cat(rows)


def exact_influence(
    model: nn.Module,
    task: Task[Batch],
    train: Iterable[Batch],
    points: Sequence[Batch],
    queries: Sequence[Iterable[Batch]],
    parameters: Sequence[str],
    damping: float,
    count: int,
) -> Tensor:
    """Influence by the damped Gauss-Newton matrix of some parameters together, without any approximation.

    Args:
        model: in evaluation mode; the parameters require gradients.
        task: how it is asked.
        train: batches of the points that the matrix is the mean of; iterated anew for every product.
        points: b train points to score, each a batch of its own.
        queries: q groups of them, as batches; influence is on the mean loss of each.
        parameters: names, as in `named_parameters`.
        damping: positive.
        count: n, the number of points in the train set.

    Returns:
        Nats of query loss, positive = helpful, [b, q], float64; NaN where conjugate gradients did not converge.
    """
    product = model_product(model, task.logits, train, parameters, damping, task.labels)
    device = next(model.parameters()).device
    found = torch.full((len(points), len(queries)), torch.nan, dtype=torch.float64, device=device)
    width = sum(parameter.numel() for name, parameter in model.named_parameters() if name in parameters)
    for run in runs(len(queries), width):
        each = [_gradients(model, task, group, parameters) for group in queries[run]]
        sides = {name: torch.stack([one[name] for one in each]) for name in parameters}
        try:
            with torch.no_grad():  # of the parameters that are held constant
                solved = conjugate_gradients(product, sides, tolerance=TOLERANCE).solved
        except InfluenceError:
            continue
        for row, batch in enumerate(points):
            gradients = _gradients(model, task, [batch], parameters)
            dots = [solved[name].flatten(1).double() @ gradients[name].flatten().double() for name in parameters]
            found[row, run] = torch.stack(dots).sum(0)
    return found / count


def _gradients(model: nn.Module, task: Task[Batch], group: Iterable[Batch], parameters: Sequence[str]) -> Gradients:
    """Of the mean loss of a group of points, by parameter; zero where it does not depend on one."""
    known = dict(model.named_parameters())
    values = [known[name] for name in parameters]
    sums, count = [torch.zeros_like(value) for value in values], 0
    for batch in group:
        labels = task.labels(batch)
        loss = total_loss(task.logits(model, batch), labels)
        count += len(labels)
        for total, gradient in zip(sums, torch.autograd.grad(loss, values, materialize_grads=True)):
            total += gradient
    return {name: total / count for name, total in zip(parameters, sums)}


def _defined(value: float) -> float | None:
    return value if isfinite(value) else None
