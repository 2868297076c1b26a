"""Points that are asked many times: texts, each of whose next tokens is a question with an answer, its target.

The loss of point i is the mean over its T_i targets, 1/T_i sum_t -log p_t(y_t), in nats per token. With J_t the
Jacobian of the logits at position t, its Gauss-Newton matrix is

    1/T_i sum_t J_t' (diag(p_t) - p_t p_t') J_t = E[r r'],   r = 1/sqrt(T_i) sum_t J_t' (p_t - e_y_t),   y_t ~ p_t

for labels drawn independently: two positions have no covariance. So a root has the cotangent (p_t - e_y_t) / sqrt(T_i)
at a target where the loss itself has (p_t - e_y_t) / T_i. Positions without a target, IGNORED as in torch (padding, a
prompt), have none. The target at position t is what the logits at position t predict: it is for the task to shift.
"""

from dataclasses import fields

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from influence.errors import InfluenceError
from influence.fisher import Fisher, residuals, sampled, uniforms
from influence.memorization import CheapSignals, cheap_signals

IGNORED = -100
ELEMENTS = 1 << 24  # of what is worked on at a time: 64 MB in float32
SIGNALS = tuple(field.name for field in fields(CheapSignals) if field.name != "predicted")
PLACE_STEP = 0x9E3779B97F4A7C15 - (1 << 64)  # odd, so that the keys of a text's tokens are all different


def are_targets(labels: Tensor) -> bool:
    """Whether the labels are of tokens, [B, T], and not of points, [B]."""
    return labels.ndim == 2


def point_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """The cross-entropy of each point, [B]: of a text its mean over targets.

    Args:
        logits: [B, C], or [B, T, V].
        labels: [B], or [B, T].
    """
    if not are_targets(labels):
        return cross_entropy(logits, labels, reduction="none")
    each = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none")
    return each.view_as(labels).sum(1) / (labels != IGNORED).sum(1)


def total_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The sum of `point_losses`."""
    if not are_targets(labels):
        return cross_entropy(logits, labels, reduction="sum")
    return point_losses(logits, labels).sum()


def weights(labels: Tensor) -> Tensor:
    """The weight 1/T_i of each target in its point's loss, 0 elsewhere, [B, T]."""
    chosen = labels != IGNORED
    return chosen / chosen.sum(1, keepdim=True)


class Tokens:
    """The targets of B texts, and the cotangents of their logits.

    Args:
        logits: detached, [B, T, V], float32 or float64.
        targets: [B, T], int64; IGNORED where there is none.

    Raises:
        InfluenceError: shapes differ, a target is outside the vocabulary, or a text has none.
    """

    def __init__(self, logits: Tensor, targets: Tensor) -> None:
        if logits.shape[:-1] != targets.shape:
            raise InfluenceError(
                f"logits {list(logits.shape)} for targets {list(targets.shape)}: give [B, T, V], [B, T]"
            )
        self._shape, self._chosen = logits.shape, targets != IGNORED
        self._counts = self._chosen.sum(1)  # [B]
        self._logits, self._targets = logits[self._chosen], targets[self._chosen]  # [N, V], [N]
        self._point = self._chosen.nonzero()[:, 0]  # [N]
        outside = self._targets[(self._targets < 0) | (self._targets >= logits.shape[2])]
        if len(outside):
            raise InfluenceError(f"target {int(outside[0])} is outside 0 … {logits.shape[2] - 1}, the vocabulary")
        if not bool(self._counts.all()):
            raise InfluenceError(f"row {int((self._counts == 0).nonzero()[0])} has no target: leave out empty texts")

    def cotangents(self, fisher: Fisher | None = None, keys: Tensor | None = None) -> Tensor:
        """Of the losses, and with a Fisher of its roots after them, [1 + R, B, T, V].

        Args:
            fisher: which roots.
            keys: one integer per text, [B]; with the place of a target among those of its text, it fixes the draw.
        """
        root = self._counts.to(self._logits.dtype).rsqrt()[self._point, None]  # [N, 1]
        found = self._logits.new_zeros(1 + (0 if fisher is None else fisher.draws), *self._shape)
        numbers = None if fisher is None or keys is None else self._numbers(fisher, keys)
        for rows in self._parts():
            p = self._logits[rows].softmax(1)
            given = root[rows] * residuals(p, self._targets[rows])
            self._put(found[0], rows, root[rows] * given)
            if numbers is not None:
                for r, drawn in enumerate(sampled(p, numbers[:, rows])):
                    self._put(found[1 + r], rows, root[rows] * residuals(p, drawn) / len(numbers) ** 0.5)
            elif fisher is not None:
                self._put(found[1], rows, given)
        return found

    def signals(self) -> Tensor:
        """Means over targets of the cheap signals, in the order of SIGNALS, [5, B]."""
        sums = self._logits.new_zeros(len(SIGNALS), self._shape[0])
        for rows in self._parts():
            cheap = cheap_signals(self._logits[rows], self._targets[rows])
            each = torch.stack([getattr(cheap, name) for name in SIGNALS])
            sums.index_add_(1, self._point[rows], each)
        return sums / self._counts

    def _numbers(self, fisher: Fisher, keys: Tensor) -> Tensor | None:
        """A number in [0, 1) for every draw and target, [R, N]; None where nothing is drawn."""
        if fisher.kind == "exact":
            raise InfluenceError(
                "Fisher kind 'exact' takes one root per word of the vocabulary at every token: use 'sampled' or "
                "'empirical'"
            )
        if fisher.kind == "empirical":
            return None
        place = self._chosen.cumsum(1)[self._chosen]  # [N]; among the targets, so that padding does not count
        return uniforms(keys.to(place.device)[self._point] + place * PLACE_STEP, fisher.draws, fisher.seed)

    def _parts(self) -> list[Tensor]:
        rows = torch.arange(len(self._targets), device=self._targets.device)
        return list(rows.split(max(1, ELEMENTS // self._shape[2])))

    def _put(self, out: Tensor, rows: Tensor, values: Tensor) -> None:
        """Into the places of some targets, [B, T, V]."""
        at = self._chosen.nonzero()[rows]
        out[at[:, 0], at[:, 1]] = values


def signals_of(logits: Tensor, labels: Tensor, of_tokens: Tensor | None) -> CheapSignals:
    """What one forward pass said of each point: of a text, what `Tokens.signals` made of its logits."""
    if of_tokens is None:
        return cheap_signals(logits, labels)
    return CheapSignals(**dict(zip(SIGNALS, of_tokens)), predicted=None)
