"""The memorization oracle: what the presence of a point changes, from models trained on random subsets.

Feldman and Zhang 2020 (arXiv 2008.03703): the mean outcome of the models that saw a point less that of those that did
not. Without bias for the effect of the point on models trained on random subsets of that size. Notation: n train
points, m queries, M models.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from influence.errors import InfluenceError


@dataclass(frozen=True)
class OracleEstimate:
    """Effect of a point's presence, estimated from models that did and did not see it; with standard errors."""

    effect: Tensor
    error: Tensor


def subset_memorization(subsets: Tensor, outcomes: Tensor) -> OracleEstimate:
    """How much better a point is predicted by models that saw it than by models that did not, without bias.

    Feldman and Zhang 2020 (arXiv 2008.03703), with accuracy as the outcome; a probability has less noise.

    Args:
        subsets: membership, [M, n], bool.
        outcomes: what each model makes of each train point, larger = better predicted, [M, n].

    Returns:
        [n] each, in the unit of the outcomes.

    Raises:
        InfluenceError: a point was seen by fewer than two models, or by all but fewer than two.
    """
    seen, unseen = _weights(subsets)
    outcomes = outcomes.double()
    inside, outside = ((weights * outcomes).sum(0) for weights in (seen, unseen))  # [n]
    spread_in = (seen * (outcomes - inside).square()).sum(0)
    spread_out = (unseen * (outcomes - outside).square()).sum(0)
    error = (spread_in / (subsets.sum(0) - 1) + spread_out / ((~subsets).sum(0) - 1)).sqrt()
    return OracleEstimate(inside - outside, error)


def subset_influence(subsets: Tensor, losses: Tensor) -> OracleEstimate:
    """How much higher the loss of a query is with models that did not see a point, without bias.

    Args:
        subsets: membership, [M, n], bool.
        losses: query losses of the models, [M, m].

    Returns:
        [n, m] each, nats, positive = helpful.

    Raises:
        InfluenceError: a point was seen by fewer than two models, or by all but fewer than two.
    """
    seen, unseen = _weights(subsets)
    losses = losses.double()
    inside, outside = seen.T @ losses, unseen.T @ losses  # [n, m]
    spread_in = seen.T @ losses.square() - inside.square()
    spread_out = unseen.T @ losses.square() - outside.square()
    freedom_in, freedom_out = (subsets.sum(0) - 1)[:, None], ((~subsets).sum(0) - 1)[:, None]
    variance = spread_in.clamp(min=0) / freedom_in + spread_out.clamp(min=0) / freedom_out
    return OracleEstimate(outside - inside, variance.sqrt())


def check_subsets(subsets: Tensor) -> None:
    """Refuse subsets, [M, n] bool, from which some point's effect has no error.

    Raises:
        InfluenceError: a point is in fewer than two, or in all but fewer than two.
    """
    fewest = int(torch.minimum(subsets.sum(0), (~subsets).sum(0)).min())
    if fewest < 2:
        raise InfluenceError(
            f"{len(subsets)} subsets: a point is in, or out of, only {fewest} of them, and an error needs 2: give more"
        )


def _weights(subsets: Tensor) -> tuple[Tensor, Tensor]:
    """What averages over the models that saw each point, and over those that did not, [M, n]."""
    check_subsets(subsets)
    return subsets.double() / subsets.sum(0), (~subsets).double() / (~subsets).sum(0)
