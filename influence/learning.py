"""What a training says of a point by how it was learned: signals over checkpoints.

Pre-memorization train accuracy (Kang et al. 2024, arXiv 2411.07681): was the point right before the model had memorized
it? There a checkpoint counts while the perplexity of the target is above a threshold; here, for classes, while p_y is
below .95. Its mean over points predicts accuracy on new data.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from influence.errors import InfluenceError
from influence.memorization import cheap_signals

MEMORIZED = 0.95  # p_y from which a point counts as memorized


@dataclass(frozen=True)
class LearningSignals:
    """Signals of n points over the checkpoints of one training, [n].

    Attributes:
        pre_memorization: 1 where the final model is right and a checkpoint was before p_y reached .95, else 0.
        loss: mean, nats.
        el2n: mean of ||p - e_y||.
        confidence: mean of p_y.
    """

    pre_memorization: Tensor
    loss: Tensor
    el2n: Tensor
    confidence: Tensor


def learning_signals(logits: Sequence[Tensor], labels: Tensor) -> LearningSignals:
    """Signals over checkpoints.

    Args:
        logits: of each checkpoint, the earliest first and the final model last, [n, C].
        labels: given labels, [n], int64.
    """
    if not logits:
        raise InfluenceError("no checkpoint given: give the logits of at least one")
    each = [cheap_signals(one, labels) for one in logits]
    confidence = torch.stack([one.confidence for one in each])  # [checkpoints, n]
    right = torch.stack([one.predicted == labels for one in each])
    before = (right & (confidence < MEMORIZED)).any(0)
    return LearningSignals(
        pre_memorization=(before & right[-1]).to(confidence),
        loss=torch.stack([one.loss for one in each]).mean(0),
        el2n=torch.stack([one.el2n for one in each]).mean(0),
        confidence=confidence.mean(0),
    )
