"""Exact minimisers of a convex training loss, with every point and without one: the truth for leave-one-out.

    J(theta) = (1/n) sum_i l_i(theta) + (ridge/2) ||theta||^2

A point that is left out leaves the sum and 1/n stays: with 1/(n - 1) the other points would weigh more, which is not
the change that influence predicts.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from influence.errors import InfluenceError

STEEPEST = 1e-8  # largest entry of the gradient at what is called a minimum
STEPS = 2000


def minimise(model: nn.Module, losses: Callable[[], Tensor], ridge: float, left_out: int | None = None) -> None:
    """Move the parameters of a model to the minimum of J, from where they are.

    Args:
        model: in float64.
        losses: of every point under the parameters as they are, [n].
        ridge: > 0, or a minimum need not exist.
        left_out: the point that does not count.

    Raises:
        InfluenceError: the gradient stays above 1e-8.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    solver = torch.optim.LBFGS(
        parameters,
        max_iter=STEPS,
        history_size=50,
        tolerance_grad=STEEPEST / 10,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        solver.zero_grad()
        each = losses()  # [n]
        total = each.sum() if left_out is None else each.sum() - each[left_out]
        value = total / len(each) + ridge / 2 * sum(parameter.square().sum() for parameter in parameters)
        value.backward()
        return value

    solver.step(objective)
    objective()
    steepest = max(float(parameter.grad.abs().max()) for parameter in parameters if parameter.grad is not None)
    if not steepest < STEEPEST:
        raise InfluenceError(
            f"the largest entry of the gradient is {steepest:.1e} after {STEPS} steps, a minimum has below {STEEPEST}: "
            "the loss is not convex, or the ridge is too small"
        )
