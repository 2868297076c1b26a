"""Proxies of memorization: what one training tells of it, without models trained on subsets.

Learning events, held-out retraining and loss curvature as compared by Zhao and Triantafillou (arXiv 2410.16516, after
RUM, arXiv 2406.01257). All are turned round where they must be, so that LARGER = more memorized; only ranks mean much.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from influence.errors import InfluenceError

STEP = 1e-3  # along a direction of norm 1; Garg et al. (arXiv 2307.05831)


@dataclass(frozen=True)
class LearningEvents:
    """Means over the checkpoints of one training, each [B], float64, larger = more memorized.

    Attributes:
        confidence: 1 - p_y.
        max_probability: 1 - max_c p_c.
        entropy: of p, nats.
        accuracy: share of the checkpoints that give another label: 1 - rate of learned events.
    """

    confidence: Tensor
    max_probability: Tensor
    entropy: Tensor
    accuracy: Tensor


def learning_events(logits: Tensor, labels: Tensor) -> LearningEvents:
    """How late and how unsurely points were learned.

    Args:
        logits: at K checkpoints, [K, B, C].
        labels: given labels, [B], int64.

    Raises:
        InfluenceError: no checkpoint, or labels of other points.
    """
    if logits.ndim != 3 or not len(logits) or labels.shape != logits.shape[1:2]:
        raise InfluenceError(
            f"logits {list(logits.shape)} and labels {list(labels.shape)}: give logits [K, B, C] of at least one "
            "checkpoint, and labels [B]"
        )
    log_p = logits.double().log_softmax(2)
    p = log_p.exp()
    given = labels.expand(len(logits), -1)[..., None]  # [K, B, 1]
    return LearningEvents(
        confidence=1 - p.gather(2, given)[..., 0].mean(0),
        max_probability=1 - p.amax(2).mean(0),
        entropy=-torch.xlogy(p, p).sum(2).mean(0),
        accuracy=(logits.argmax(2) != labels).double().mean(0),
    )


def held_out_retrain(logits: Tensor, retrained: Tensor) -> Tensor:
    """How far a prediction moves when the model is trained on with held-out points: half the symmetric KL, nats, [B].

    Args:
        logits: of the model, [B, C].
        retrained: of the same model after fine-tuning on points that it had not seen, [B, C].
    """
    before, after = logits.double().log_softmax(1), retrained.double().log_softmax(1)
    return ((before.exp() - after.exp()) * (before - after)).sum(1) / 2


def loss_curvature(losses: Callable[[Tensor], Tensor], inputs: Tensor, step: float = STEP) -> Tensor:
    """How much the slope of a point's loss changes a step up the sign of its gradient, [B]; 0 on a plateau.

        || grad_x l(x + step z) - grad_x l(x) ||,    z = sign(grad_x l) / ||sign(grad_x l)||

    Args:
        losses: of inputs, each of its own input alone, [B].
        inputs: x, floating, [B, ...].
        step: along z, in the unit of the inputs.
    """

    def slope(at: Tensor) -> Tensor:
        at = at.detach().requires_grad_()
        (found,) = torch.autograd.grad(losses(at).sum(), at)
        return found

    with torch.enable_grad():
        first = slope(inputs)
        way = first.sign().flatten(1)  # [B, d]
        way = way / way.norm(dim=1, keepdim=True).clamp(min=1)  # of signs: 0, or at least 1
        second = slope(inputs + step * way.view_as(inputs))
    change: Tensor = (second - first).flatten(1).norm(dim=1)
    return change
