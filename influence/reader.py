"""One pass over points: logits, and the factors of their losses and of their Gauss-Newton matrices.

One forward pass serves both kinds of factors, and what fits the cache is not computed again. A model that is asked for
its head alone needs no backward pass: the gradients of a softmax head are known in closed form.
"""

from contextlib import AbstractContextManager
from types import TracebackType
from typing import Generic

import torch
from torch import Tensor, nn

from influence.blocks import Block, Blocks
from influence.cache import FactorCache
from influence.compression import Compressor
from influence.errors import InfluenceError
from influence.factored import Factors
from influence.fisher import Fisher, margin_residuals, residuals
from influence.gradients import FactorSource, head_outputs, refuse_non_finite
from influence.layouts import LinearLayout
from influence.reading import Batch, Reading, Task
from influence.tokens import Tokens, are_targets


class Reader(AbstractContextManager["Reader[Batch]"], Generic[Batch]):
    """Reads batches of points with one model; a context manager, the model is restored on exit.

    Args:
        model: a classifier, or a language model.
        task: how it is asked.
        blocks: what gradients are taken of.
        fisher: which roots to take.
        cache: keeps readings with roots, by number; None keeps nothing.
        compressor: of these blocks: gradients are read, kept and given away compressed; None leaves them as they are.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task[Batch],
        blocks: Blocks,
        fisher: Fisher | None = None,
        cache: FactorCache | None = None,
        compressor: Compressor | None = None,
    ) -> None:
        if not blocks:
            raise InfluenceError("no block given to take gradients of")
        if compressor is not None:
            compressor.refuse_others(blocks)
        self.source = FactorSource(model, blocks)
        self.blocks = blocks
        self.task = task
        self._fisher = fisher or Fisher()
        self._cache = cache
        self._compressor = compressor

    def __enter__(self) -> "Reader[Batch]":
        self.source.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.source.__exit__(kind, error, trace)

    def train(self, batch: Batch, number: int, keys: Tensor) -> Reading:
        """Read train points with their Fisher roots.

        Args:
            batch: the points.
            number: of the batch; the same points have the same number in every pass.
            keys: one integer per point, [B]: seeds of sampled labels.
        """
        kept = self._kept(batch, number)
        if kept is not None:
            return kept
        reading = self._read(batch, keys)
        if self._cache is not None:
            self._cache.put(number, reading)
        return reading

    def losses(self, batch: Batch, number: int | None = None) -> Reading:
        """Read points for their losses alone; train points that were kept are not computed again.

        Args:
            batch: the points.
            number: of a batch of train points.
        """
        kept = None if number is None else self._kept(batch, number)
        return kept or self._read(batch, None)

    def queries(self, batch: Batch) -> Reading:
        """Read query points; their `losses` are of minus the margin, whose gradient times 1 - p_y is the loss's.

        A text has no margin: its are of the loss itself.
        """
        logits, labels = self._forward(batch)
        if are_targets(labels):
            return self._read_texts(logits, labels, None)
        pulled = self._pull(logits, margin_residuals(_full(logits), labels))
        return Reading(_full(logits), labels, self._compressed(pulled))

    def _kept(self, batch: Batch, number: int) -> Reading | None:
        kept = None if self._cache is None else self._cache.get(number)
        if kept is not None and not kept.labels.equal(self.task.labels(batch)):
            raise InfluenceError(f"batch {number} has other labels than in the pass before: do not shuffle")
        return kept

    def _read(self, batch: Batch, keys: Tensor | None) -> Reading:
        logits, labels = self._forward(batch)
        if are_targets(labels):
            return self._read_texts(logits, labels, keys)
        p = _full(logits).softmax(1)
        wanted, first = residuals(p, labels)[None], 0  # [1, B, C]; the empirical root is the loss gradient
        if keys is not None and self._fisher.kind != "empirical":
            wanted, first = torch.cat([wanted, self._fisher.roots(p, labels, keys)]), 1  # [1 + R, B, C]
        pulled = self._compressed(self._pull_many(logits, wanted))
        losses = {name: factor.at(factor.g[0]) for name, factor in pulled.items()}
        roots = {name: factor.at(factor.g[first:]) for name, factor in pulled.items()}
        return Reading(_full(logits), labels, losses, None if keys is None else roots)

    def _read_texts(self, logits: Tensor, targets: Tensor, keys: Tensor | None) -> Reading:
        tokens = Tokens(_full(logits), targets)
        wanted = tokens.cotangents() if keys is None else tokens.cotangents(self._fisher, keys)
        pulled = self._compressed(self.source.pull_many(logits, wanted))
        losses = {name: factor.at(factor.g[0]) for name, factor in pulled.items()}
        roots = None if keys is None else {name: one.at(one.g[1:]) for name, one in pulled.items()}
        none = logits.new_empty(len(logits), 0)  # no view: the cache would hold all [B, T, V] of them with it
        return Reading(_full(none), targets, losses, roots, tokens.signals())

    def _compressed(self, pulled: Factors) -> Factors:
        return pulled if self._compressor is None else self._compressor(pulled)

    def _forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        logits, labels = self.source.forward(self.task.logits, batch), self.task.labels(batch)
        if are_targets(labels):
            refuse_non_finite("logits", logits)
            return logits, labels
        outside = labels[(labels < 0) | (labels >= logits.shape[1])]
        if len(outside):
            raise InfluenceError(f"label {int(outside[0])} is outside 0 … {logits.shape[1] - 1}, the logits' classes")
        refuse_non_finite("logits", logits)
        return logits, labels

    def _pull(self, logits: Tensor, cotangent: Tensor) -> Factors:
        alone = self._head_alone(logits)
        if alone is not None:
            return head_outputs(self.source, alone, logits).factors(cotangent)
        return self.source.pull(logits, cotangent)

    def _pull_many(self, logits: Tensor, cotangents: Tensor) -> Factors:
        alone = self._head_alone(logits)
        if alone is not None:
            return head_outputs(self.source, alone, logits).factors(cotangents)
        return self.source.pull_many(logits, cotangents)

    def _head_alone(self, logits: Tensor) -> Block | None:
        """The only block, if what it returned are the logits."""
        if len(self.blocks) > 1 or not isinstance(self.blocks[0].layout, LinearLayout):
            return None
        outputs = self.source.outputs(self.blocks[0].name)
        return self.blocks[0] if outputs.shape == logits.shape and outputs.equal(_full(logits)) else None


def _full(logits: Tensor) -> Tensor:
    detached = logits.detach()
    return detached if detached.dtype == torch.float64 else detached.float()
