"""What a training says of a point by how it was learned: signals over its checkpoints.

Pre-memorization train accuracy (Kang et al. 2024, arXiv 2411.07681): was the point right before the model had memorized
it? There a checkpoint counts while the perplexity of the target is above a threshold, and the mean over points predicts
accuracy on new data; here, for classes, it counts while p_y is below .95. Means over checkpoints are what Zhao and
Triantafillou (arXiv 2410.16516) compare as proxies of memorization.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from influence.errors import InfluenceError

MEMORIZED = 0.95  # p_y from which a point counts as memorized


@dataclass(frozen=True)
class LearningSignals:
    """Signals of n points over the checkpoints of one training, [n], float64.

    Attributes:
        pre_memorization: 1 where the final model is right and was at a checkpoint before p_y reached .95, else 0.
        loss: mean, nats.
        el2n: mean of ||p - e_y||.
        confidence: mean of p_y.
        max_probability: mean of the largest p_c.
        entropy: mean of that of p, nats.
        accuracy: share of the checkpoints that predict the given label: the rate of learned events.
    """

    pre_memorization: Tensor
    loss: Tensor
    el2n: Tensor
    confidence: Tensor
    max_probability: Tensor
    entropy: Tensor
    accuracy: Tensor


def learning_signals(logits: Tensor, labels: Tensor) -> LearningSignals:
    """Signals over checkpoints.

    Args:
        logits: at K checkpoints, the earliest first and the final model last, [K, n, C].
        labels: given labels, [n], int64.

    Raises:
        InfluenceError: no checkpoint, or labels of other points or classes.
    """
    if logits.ndim != 3 or not len(logits) or labels.shape != logits.shape[1:2]:
        raise InfluenceError(
            f"logits {list(logits.shape)} and labels {list(labels.shape)}: give logits [K, n, C] of at least one "
            "checkpoint, and labels [n]"
        )
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[2]:
        raise InfluenceError(f"label {int(labels.max())}: the logits have {logits.shape[2]} classes, counted from 0")
    log_p = logits.double().log_softmax(2)
    p = log_p.exp()
    given = labels.expand(len(logits), -1)[..., None]  # [K, n, 1]
    confidence = p.gather(2, given)[..., 0]  # [K, n]
    right = logits.argmax(2) == labels
    return LearningSignals(
        pre_memorization=((right & (confidence < MEMORIZED)).any(0) & right[-1]).double(),
        loss=-log_p.gather(2, given)[..., 0].mean(0),
        el2n=p.scatter_add(2, given, -torch.ones_like(p[..., :1])).norm(dim=2).mean(0),
        confidence=confidence.mean(0),
        max_probability=p.amax(2).mean(0),
        entropy=-torch.xlogy(p, p).sum(2).mean(0),
        accuracy=right.double().mean(0),
    )
