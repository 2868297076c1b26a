"""Proxies of memorization that cost more than a forward pass; LARGER = more memorized, and only ranks mean much.

Held-out retraining and loss curvature as compared by Zhao and Triantafillou (arXiv 2410.16516, after RUM, arXiv
2406.01257); the others they compare are means over checkpoints (`learning`).
"""

from collections.abc import Callable

import torch
from torch import Tensor

STEP = 1e-3  # along a direction of norm 1; Garg et al. (arXiv 2307.05831)


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
