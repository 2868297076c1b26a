"""The loss that the curvature is that of."""

import torch
from torch import Tensor

from influence.errors import InfluenceError
from influence.tokens import point_losses


def check_cross_entropy(losses: Tensor, logits: Tensor, labels: Tensor) -> None:
    """Refuse a loss that is not the cross-entropy of the logits, for which this curvature would be the wrong one.

    Args:
        losses: per-point losses of the workload, [B].
        logits: of the same points, [B, C]; of texts [B, T, V].
        labels: given labels, [B], int64; of texts their targets, [B, T].
    """
    check_equal(losses, point_losses(logits.detach(), labels))


def check_equal(losses: Tensor, expected: Tensor) -> None:
    """The same, where the cross-entropy is known, [B]."""
    losses = losses.detach()
    if not torch.allclose(losses, expected, rtol=1e-3, atol=1e-4):
        row = int((losses - expected).abs().argmax())
        raise InfluenceError(
            f"the loss is not the cross-entropy of the logits and labels (row {row}: {float(losses[row]):.4g}, "
            f"expected {float(expected[row]):.4g}); only that loss is supported"
        )
