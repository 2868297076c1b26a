"""Which points may be left out together: those whose steps cancel, so that the fit stays where it is.

The removal of a set S moves the parameters by (1/n) H^-1 sum_S g_i. Such a sum of signed steps can be small although no
term is, so that S need not be the easiest points, whose removal empties whole regions (Yang et al. 2023, arXiv
2205.09329, bound the norm of that sum). Here it is measured by what it costs, ||sum_S g_i||^2 in the metric of H^-1, so
that inner products g_i' H^-1 g_j are all that is needed. What stays is trained on a mean loss of its own, so terms are
taken less their mean: an S of zero sum then leaves the mean gradient as it was.

Points are taken one by one, always the one after which the sum is shortest (herding: Welling 2009, ICML). At a share s
no class and no group has lost more than SLACK * s of its points; where that stops it, as many more go as soon as they
may. What is left out at one share is left out at every larger one.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from influence.curvature.base import Curvature
from influence.errors import InfluenceError
from influence.factored import Factors, materialise
from influence.redundancy import SLACK
from influence.sparse import TableFactor, stacked

AT_ONCE = 64  # points that are solved together, and whose gradients are held


def products(curvature: Curvature, losses: Factors) -> Tensor:
    """g_i' H^-1 g_j of any two of b points, from the factors of their losses, [b, b], float64."""
    count = next(iter(losses.values())).g.shape[-3]
    parts = []
    for part in torch.arange(count).split(AT_ONCE):
        some = {name: factor[part] for name, factor in losses.items()}
        full = {
            name: stacked([factor]) if isinstance(factor, TableFactor) else materialise(factor)
            for name, factor in some.items()
        }
        parts.append(curvature.against(full).score(losses).dots)
    return torch.cat(parts, 1)


def balance(products: Tensor, cells: Sequence[Tensor], eligible: Tensor) -> Tensor:
    """The smallest share at which each point is among those left out.

    Time and memory grow with the square of n: give a large set in parts, and each is balanced in itself.

    Args:
        products: g_i' H^-1 g_j of any two points, [n, n].
        cells: what coverage is kept of, e.g. class and group of each point, int64 [n] each; a negative one is none.
        eligible: points that may be left out, bool [n]; only these count.

    Returns:
        [n], above 0 and at most 1, float64; NaN where not eligible.
    """
    rows = torch.where(eligible)[0]
    inner = products.double()[rows][:, rows]
    finite = inner.diagonal().isfinite()
    if not bool(finite.all()):
        raise InfluenceError(f"self-influence of row {int(rows[~finite][0])} is not finite: score again")
    mean = inner.mean(0, keepdim=True)
    everyone = torch.ones(1, len(rows), dtype=torch.bool)
    members = [cell[rows] == value for cell in cells for value in cell[rows].unique() if value >= 0]
    shares = _herded(inner - mean - mean.T + mean.mean(), torch.cat([everyone, *(one[None] for one in members)]))
    return torch.full((len(eligible),), torch.nan, dtype=torch.float64).index_copy_(0, rows, shares)


def _herded(inner: Tensor, members: Tensor) -> Tensor:
    """Of centred products [n, n] and the sets that keep their part, bool [k, n]: the share at which each point goes."""
    count = len(inner)
    cost = inner.diagonal().clone()  # what a point would add to the squared length of the sum
    most, gone = SLACK * members.sum(1) / max(count, 1), torch.zeros(len(members))
    shares = torch.full((count,), torch.nan, dtype=torch.float64)
    left = count
    for turn in range(1, count + 1):
        while left > count - turn:
            barred = members[gone + 1 > turn * most].any(0) | shares.isfinite()
            if bool(barred.all()):
                break
            point = int(cost.masked_fill(barred, torch.inf).argmin())
            shares[point] = turn / count
            gone += members[:, point]
            cost += 2 * inner[:, point]
            left -= 1
    return shares
