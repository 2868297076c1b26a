"""All parameters of a model, whatever its layers are: what a selection of blocks leaves out, measured on a few points.

Gradients come from a plain backward pass for each point, curvature from products through the model: no hooks, no
layouts, and much slower than `reader` on the blocks that have one.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from influence.blocks import available
from influence.curvature.iterative import conjugate_gradients
from influence.curvature.joint import runs
from influence.curvature.products import model_product
from influence.errors import InfluenceError
from influence.factored import Gradients
from influence.reading import Batch, Task
from influence.validation import spearman

TOLERANCE = 1e-3  # of the solutions: moves influence by less than .1 %, and ranks by less than 1e-4


@dataclass(frozen=True)
class Agreement:
    """How influence on some pairs agrees with the truth; None where there is no such number.

    Attributes:
        pairs: rank correlation over all pairs.
        means: the same of the points' means over the queries.
        error: ||found - truth|| / ||truth||.
    """

    pairs: float | None
    means: float | None
    error: float | None


def agreement(found: Tensor, truth: Tensor) -> Agreement:
    """Compare influence of the same points on the same queries, both [b, q]; of NaN, nothing is known."""
    if found.isnan().any() or truth.isnan().any():
        return Agreement(None, None, None)
    return Agreement(
        pairs=_defined(spearman(found.flatten(), truth.flatten())),
        means=_defined(spearman(found.mean(1), truth.mean(1))),
        error=_defined(float((found - truth).norm() / truth.norm())),
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
    owners = torch.tensor([column[name.rpartition(".")[0] or "model"] for name in learned], dtype=torch.int64)
    rows = [torch.zeros(0, len(column), dtype=torch.float64)]
    for batch in points:
        gradients = _gradients(model, task, batch, learned)
        squares = torch.stack([gradient.double().square().sum() for gradient in gradients.values()])
        rows.append(squares.new_zeros(1, len(column)).index_add_(1, owners, squares[None]))
    return torch.cat(rows)


def exact_influence(
    model: nn.Module,
    task: Task[Batch],
    train: Iterable[Batch],
    points: Sequence[Batch],
    queries: Sequence[Batch],
    parameters: Sequence[str],
    damping: float,
    count: int,
) -> Tensor:
    """Influence by the damped Gauss-Newton matrix of some parameters together, without any approximation.

    Args:
        model: in evaluation mode, best in float64; the parameters require gradients.
        task: how it is asked.
        train: batches of the points that the matrix is the mean of; iterated anew for every product.
        points: b train points to score, each a batch of its own.
        queries: q of them, each a batch of its own.
        parameters: names, as in `named_parameters`.
        damping: positive.
        count: n, the number of points in the train set.

    Returns:
        Nats of query loss, positive = helpful, [b, q], float64; NaN where conjugate gradients did not converge.
    """
    product = model_product(model, task.logits, train, parameters, damping)
    found = torch.full((len(points), len(queries)), torch.nan, dtype=torch.float64)
    width = sum(parameter.numel() for name, parameter in model.named_parameters() if name in parameters)
    for run in runs(len(queries), width):
        each = [_gradients(model, task, batch, parameters) for batch in queries[run]]
        sides = {name: torch.stack([one[name] for one in each]) for name in parameters}
        try:
            with torch.no_grad():  # of the parameters that are held constant
                solved = conjugate_gradients(product, sides, tolerance=TOLERANCE).solved
        except InfluenceError:
            continue
        for row, batch in enumerate(points):
            gradients = _gradients(model, task, batch, parameters)
            dots = [solved[name].flatten(1).double() @ gradients[name].flatten().double() for name in parameters]
            found[row, run] = torch.stack(dots).sum(0)
    return found / count


def _gradients(model: nn.Module, task: Task[Batch], batch: Batch, parameters: Sequence[str]) -> Gradients:
    """Of the loss of one point, by parameter; zero where it does not depend on one."""
    known = dict(model.named_parameters())
    loss = cross_entropy(task.logits(model, batch), task.labels(batch), reduction="sum")
    found = torch.autograd.grad(loss, [known[name] for name in parameters], materialize_grads=True)
    return dict(zip(parameters, found))


def _defined(value: float) -> float | None:
    return value if isfinite(value) else None
