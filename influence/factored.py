"""Factors of per-point gradients, and algebra on them without forming the gradients.

The gradient of one point's loss in a linear block is G_b = sum_t g_bt a_bt', a sum over T positions of outer products
of the gradient g at the layer's output and its input a.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Factor:
    """Per-point gradients of one block.

    Attributes:
        a: inputs of the layer, 1 appended where it has a bias, [B, T, i].
        g: gradients at the outputs of the layer, [B, T, o]; of several functions, [C, B, T, o].
    """

    a: Tensor
    g: Tensor


Factors = Mapping[str, Factor]


def materialise(factor: Factor) -> Tensor:
    """The gradients themselves, [B, o, i]."""
    if factor.a.shape[1] == 1:
        return factor.g.mT * factor.a  # [B, o, 1] * [B, 1, i]
    return factor.g.mT @ factor.a


def rotate(factor: Factor, inputs: Tensor, outputs: Tensor) -> Factor:
    """The factors of outputs' G inputs, for bases [i, i] and [o, o] whose columns are the basis vectors."""
    return Factor(factor.a @ inputs, factor.g @ outputs)
