"""Which points a model memorizes and which it generalizes from, and the cheap signals beside influence.

The labels are our own definition: the sign of a point's mean influence on held-out queries, against its standard error.
On the train set itself the sign would mean nothing: without regularisation every point looks harmful to the others.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from influence.errors import InfluenceError
from influence.factored import Factors, squared_norms, total

MemorizationLabel = Literal["memorize", "generalize", "neutral"]


@dataclass(frozen=True)
class CheapSignals:
    """What one forward pass says of each point, [B].

    Attributes:
        loss: cross-entropy, nats.
        margin: z_y - logsumexp of the other logits; loss = log(1 + exp(-margin)).
        confidence: p_y.
        entropy: of p, nats.
        el2n: ||p - e_y|| (Paul et al. 2021, arXiv 2107.07075).
        predicted: class of the largest logit, int64; None of a text, of which the others are means over its tokens.
    """

    loss: Tensor
    margin: Tensor
    confidence: Tensor
    entropy: Tensor
    el2n: Tensor
    predicted: Tensor | None


def memorization_labels(influence: Tensor, influence_se: Tensor, z: float = 1.0) -> list[MemorizationLabel]:
    """`generalize` where influence > z se, `memorize` where influence < -z se, else `neutral`.

    Args:
        influence: mean over held-out queries, [b].
        influence_se: its standard error over queries, [b].
        z: at least 0; 0 is the bare sign.
    """
    if z < 0:
        raise InfluenceError(f"z = {z}: give at least 0")
    helpful, harmful = influence > z * influence_se, influence < -z * influence_se
    return [
        "generalize" if good else "memorize" if bad else "neutral"
        for good, bad in zip(helpful.tolist(), harmful.tolist(), strict=True)
    ]


def cheap_signals(logits: Tensor, labels: Tensor) -> CheapSignals:
    """Signals that need no gradient.

    Args:
        logits: [B, C].
        labels: given labels, [B], int64.
    """
    given = one_hot(labels, logits.shape[1]).bool()  # [B, C]
    margin = logits[given] - logits.masked_fill(given, -torch.inf).logsumexp(1)
    log_p = logits.log_softmax(1)
    p = log_p.exp()
    return CheapSignals(
        loss=torch.nn.functional.softplus(-margin),
        margin=margin,
        confidence=margin.sigmoid(),
        entropy=-(p * log_p).sum(1),
        el2n=(p - given.to(p)).norm(dim=1),
        predicted=logits.argmax(1),
    )


def grand(losses: Factors) -> Tensor:
    """Norm of the loss gradient on the blocks, [B], float64 (GraNd; Paul et al. 2021, arXiv 2107.07075).

    Args:
        losses: factors of the losses of B points.
    """
    return total(losses, lambda name, factor: squared_norms(factor)).sqrt()
