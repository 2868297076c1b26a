"""Which points may be left out: those whose fit rests on them least, thinned instead of emptied.

Points of small self-influence are learnt from others, and a fifth of them may go. But they lie together, and to take
the smallest first empties whole regions: at two fifths that loses more accuracy than leaving points out at random. So
points are drawn without replacement, a point at the share r of the order by self-influence with weight (1 - r)^POWER
(Efraimidis and Spirakis 2006, Information Processing Letters 97(5): by the smallest of exponential variates over their
weights). And every class and group keeps its part: at a share s, none loses more than SLACK * s of its points. The
draw is by point, so what is left out at one share is left out at every larger one.

Exact copies of points that stay go before all others and within the same share, and no part is kept of them: without
them nothing is uncovered. What they repeat is not left out while they are there.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from influence.errors import InfluenceError

POWER, SLACK = 2.0, 1.5


def redundancy(
    self_influence: Tensor,
    cells: Sequence[Tensor],
    eligible: Tensor,
    keys: Tensor,
    originals: Tensor | None = None,
) -> Tensor:
    """The smallest share at which each point is among those left out.

    Args:
        self_influence: g' H^-1 g >= 0, [n].
        cells: what coverage is kept of, e.g. class and group of each point, int64 [n] each; a negative one is none.
        eligible: points that may be left out, bool [n]; only these count.
        keys: what is drawn for a point depends on it alone, int64 [n], spread evenly over all 64 bits.
        originals: row of the point that each point is an exact copy of, -1 for none, int64 [n]; default: no copies.

    Returns:
        [n], above 0, float64; NaN where not eligible, and for what eligible points repeat. Above 1 for the last points
        of a class or group.
    """
    rows = torch.where(eligible)[0]
    own = self_influence.double()[rows]
    if not bool(torch.isfinite(own).all()):
        raise InfluenceError(f"self-influence of row {int(rows[~torch.isfinite(own)][0])} is not finite: score again")
    count = len(rows)
    r = (_places(own) - 0.5) / count
    uniform = (keys[rows].double() / 2.0**64 + 0.5).clamp(1e-12, 1 - 1e-12)
    repeats, repeated = _copies(originals, eligible)
    variates = (-uniform.log() / (1 - r) ** POWER).masked_fill(repeated[rows], torch.inf)  # > 0
    drawn = _places(torch.where(repeats[rows], -1 / variates, variates))
    shares = drawn / count
    for cell in cells:
        for value in cell[rows].unique():
            if value >= 0:
                inside = cell[rows] == value
                needed = _places(drawn[inside]) / (SLACK * int(inside.sum()))
                kept = torch.maximum(shares[inside], needed)
                shares[inside] = torch.where(repeats[rows[inside]], shares[inside], kept)
    found = torch.full((len(eligible),), torch.nan, dtype=torch.float64).index_copy_(0, rows, shares)
    return found.masked_fill_(repeated, torch.nan)


def _copies(originals: Tensor | None, eligible: Tensor) -> tuple[Tensor, Tensor]:
    """Which of the eligible points repeat another, and which they repeat, both [n]."""
    repeats, repeated = torch.zeros_like(eligible), torch.zeros_like(eligible)
    if originals is not None:
        repeats = eligible & (originals >= 0)
        repeated[originals[repeats]] = True
    return repeats, repeated


def _places(values: Tensor) -> Tensor:
    """Of each value in the order of all, from 1, ties in the order given."""
    order = values.argsort(stable=True)
    return torch.empty(len(values), dtype=torch.float64).scatter_(
        0, order, torch.arange(1, len(values) + 1, dtype=torch.float64)
    )
