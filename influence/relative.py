"""Relative influence: influence divided by what the point moves at all.

| mode | of a point of mean influence V | unit |
|---|---|---|
| theta | n V / ||H^-1 g|| (Barshan et al. 2020, arXiv 2003.11630) | nats per unit of parameter change |
| l | n V / sqrt(g' H^-1 g) (the same work) | square root of nats |
| self | V / (g' H^-1 g / n): transfer per unit of self-fit | none |
| share | V / sum_j |V_j| | none |

theta, l and self are null where self-influence is not above 1e-6 of its median: noise over noise.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from influence.curvature.base import Own
from influence.errors import InfluenceError

NEGLIGIBLE = 1e-6  # of the median self-influence


@dataclass(frozen=True)
class RelativeInfluence:
    """The four modes, [n], float64, positive = helpful; NaN where there is none.

    Attributes:
        theta: per unit of parameter change.
        l: per unit of change in the curvature's metric.
        own: mode `self`.
        share: of the sum of absolute influences.
        nulls: how many points are null in the first three.
    """

    theta: Tensor
    l: Tensor  # noqa: E741, the mode's published name
    own: Tensor
    share: Tensor
    nulls: int


def relative_influence(influence: Tensor, own: Own, points: int) -> RelativeInfluence:
    """All four modes, for all train points at once.

    Args:
        influence: mean over queries, [n].
        own: with squared steps.
        points: how many of them are in the train set.

    Raises:
        InfluenceError: the own terms hold no squared step.
    """
    if own.squared_step is None:
        raise InfluenceError("relative influence needs squared steps: score with step=True")
    null = own.self_influence <= NEGLIGIBLE * own.self_influence.median()
    scaled = (points * influence).masked_fill(null, torch.nan)
    return RelativeInfluence(
        theta=scaled / own.squared_step.sqrt(),
        l=scaled / own.self_influence.sqrt(),
        own=scaled / own.self_influence,
        share=influence / influence.abs().sum(),
        nulls=int(null.sum()),
    )
