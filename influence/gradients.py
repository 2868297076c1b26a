"""Per-point gradients of the selected blocks, as factors, from one batched backward pass.

A forward hook keeps each block's input a [B, T, i] and makes its output a place where the backward pass can stop; the
gradient there, g [B, T, o], of the SUM of per-point values holds every point's own gradient, because points do not
interact: the model is in evaluation mode. Weights are frozen, so no weight gradient is formed.

    with FactorSource(model, blocks) as source:
        losses = source.forward(workload.loss, batch)  # [B]
        factors = source.pull(losses)  # name -> Factor
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from influence.blocks import Block
from influence.errors import InfluenceError, NotFinite, NotPerPoint
from influence.factored import Factor, Factors

Batch = TypeVar("Batch")


class FactorSource:
    """Captures factors of the blocks of a model; a context manager that restores the model on exit.

    Args:
        model: the model; evaluation mode and frozen weights hold while the source is open.
        blocks: what to capture.
    """

    def __init__(self, model: nn.Module, blocks: Sequence[Block]) -> None:
        self.model = model
        self.blocks = tuple(blocks)
        self._inputs: dict[str, Tensor] = {}
        self._outputs: dict[str, Tensor] = {}
        self._undo = ExitStack()
        self._recording = False

    def __enter__(self) -> "FactorSource":
        with ExitStack() as undo:
            for module in self.model.modules():
                undo.callback(setattr, module, "training", module.training)
            for parameter in self.model.parameters():
                undo.callback(parameter.requires_grad_, parameter.requires_grad)
            self.model.eval().requires_grad_(False)
            for block in self.blocks:
                undo.callback(block.module.register_forward_hook(self._capture(block)).remove)
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()
        self._inputs.clear()
        self._outputs.clear()

    def forward(self, function: Callable[[nn.Module, Batch], Tensor], batch: Batch) -> Tensor:
        """Run `function(model, batch)` with hooks on, forgetting what the last forward captured.

        Args:
            function: returns per-point losses [B] or logits [B, C] of the batch.
            batch: whatever the function takes.

        Raises:
            InfluenceError: a block's layer is not used, or is used more than once.
        """
        self._inputs.clear()
        self._outputs.clear()
        self._recording = True
        try:
            with torch.enable_grad():
                result = function(self.model, batch)
        finally:
            self._recording = False
        for block in self.blocks:
            if block.name not in self._inputs:
                raise InfluenceError(f"block {block.name!r} is not called in the forward pass; select other blocks")
        return result

    def pull(self, outputs: Tensor, cotangent: Tensor | None = None, *, retain: bool = False) -> Factors:
        """The factors of one backward pass from what `forward` returned.

        Args:
            outputs: per-point losses [B]; with a cotangent, outputs of any shape [B, ...].
            cotangent: weights of the outputs, in their shape; point b's gradient is that of their weighted sum.
            retain: keep the graph, so that another pull can follow the same forward.

        Raises:
            NotPerPoint: outputs without a cotangent are not one value per point.
            NotFinite: a value or a gradient is NaN or infinite.
            InfluenceError: outputs do not depend on a block.
        """
        self._check_rows(outputs, per_point=cotangent is None)
        if cotangent is None:
            _refuse_non_finite("loss", outputs)
            cotangent = torch.ones_like(outputs)
        if not outputs.requires_grad:
            raise InfluenceError("the outputs carry no gradient: is the loss computed under no_grad, or detached?")
        places = [self._outputs[block.name] for block in self.blocks]
        gradients = torch.autograd.grad(outputs, places, cotangent, retain_graph=retain, allow_unused=True)
        factors: dict[str, Factor] = {}
        for block, gradient in zip(self.blocks, gradients, strict=True):
            if gradient is None:
                raise InfluenceError(f"the outputs do not depend on block {block.name!r}; select other blocks")
            _refuse_non_finite(block.name, gradient)
            factors[block.name] = Factor(self.inputs(block.name), _as_sequence(gradient))
        return factors

    def inputs(self, name: str) -> Tensor:
        """What a block's layer was given in the last forward, 1 appended where it has a bias, [B, T, i]."""
        return self._inputs[name]

    def outputs(self, name: str) -> Tensor:
        """What a block's layer returned in the last forward, detached, [B, ..., outputs]."""
        return self._outputs[name].detach()

    def _check_rows(self, outputs: Tensor, *, per_point: bool) -> None:
        if outputs.ndim == 0 or (per_point and outputs.ndim > 1):
            given = "a single number" if outputs.ndim == 0 else f"of shape {list(outputs.shape)}"
            raise NotPerPoint(f"the loss is {given}, not one value per point [B]; use reduction='none'")
        for name, a in self._inputs.items():
            if len(a) != len(outputs):
                raise NotPerPoint(
                    f"the loss has {len(outputs)} values but block {name!r} saw {len(a)} rows; give one value per "
                    "point, and select blocks whose first dimension is the batch"
                )

    def _capture(self, block: Block) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor | None]:
        def hook(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if not self._recording:  # someone else calls the model
                return None
            if block.name in self._inputs:
                raise InfluenceError(f"block {block.name!r} is called twice in one forward pass; select other blocks")
            a = _as_sequence(arguments[0].detach())  # [B, T, i]
            a = torch.cat([a, a.new_ones(*a.shape[:2], 1)], dim=2) if module.bias is not None else a.clone()
            self._inputs[block.name] = a
            self._outputs[block.name] = output if output.requires_grad else output.requires_grad_()
            return output.clone()  # so that an in-place activation does not move the place where the backward stops

        return hook


def label_factors(source: FactorSource, logits: Tensor) -> Factors:
    """Roots of the Gauss-Newton matrix of each point, exactly: one backward per class, no sampling of labels.

    For label y: g = sqrt(p_y) B' (e_y - p), with p the predicted probabilities and B the Jacobian of the logits; summed
    over y, the outer products of these gradients are B' (diag(p) - p p') B.

    Args:
        source: has just run the forward that returned the logits; its graph is kept for another pull.
        logits: [B, C].

    Returns:
        Factors with a of shape [B, T, i] and one gradient per label: g of shape [C, B, T, o].
    """
    p = logits.detach().softmax(-1)  # [B, C]
    roots = p.T.sqrt()[:, :, None] * (torch.eye(p.shape[1], dtype=p.dtype)[:, None] - p)  # [C, B, C]
    pulled = [source.pull(logits, root, retain=True) for root in roots]
    return {
        block.name: Factor(source.inputs(block.name), torch.stack([factors[block.name].g for factors in pulled]))
        for block in source.blocks
    }


@dataclass(frozen=True)
class HeadOutputs:
    """All that a softmax head's gradients depend on.

    Attributes:
        name: the head block.
        inputs: of the head, 1 appended where it has a bias, [B, i].
        probabilities: softmax of its outputs, [B, C].
    """

    name: str
    inputs: Tensor
    probabilities: Tensor

    def loss_factors(self, labels: Tensor) -> Factors:
        """Factors of the cross-entropy loss, in closed form: g = p - e_y, a = inputs.

        Args:
            labels: given labels, [B], int64.
        """
        residual = self.probabilities - one_hot(labels, self.probabilities.shape[1])
        return {self.name: Factor(self.inputs[:, None], residual[:, None])}


def head_outputs(source: FactorSource, block: Block, logits: Tensor) -> HeadOutputs:
    """Read the head of a softmax classifier from one forward pass, without a backward.

    Args:
        source: has just run the forward that returned the logits; the head is among its blocks.
        block: the head.
        logits: [B, C].

    Raises:
        InfluenceError: the block sees several positions per point, or its outputs are not the logits.
        NotFinite: a logit is NaN or infinite.
    """
    inputs, outputs = source.inputs(block.name), source.outputs(block.name)
    if inputs.shape[1] != 1 or outputs.shape != logits.shape or not outputs.equal(logits.detach()):
        raise InfluenceError(f"block {block.name!r} does not produce the logits as they are, so it is no softmax head")
    _refuse_non_finite(block.name, outputs)
    return HeadOutputs(block.name, inputs[:, 0], outputs.softmax(-1))


def check_cross_entropy(losses: Tensor, logits: Tensor, labels: Tensor) -> None:
    """Refuse a loss that is not the cross-entropy of the logits, for which this curvature would be the wrong one.

    Args:
        losses: per-point losses of the workload, [B].
        logits: of the same points, [B, C].
        labels: given labels, [B], int64.
    """
    losses, expected = losses.detach(), cross_entropy(logits.detach(), labels, reduction="none")
    if not torch.allclose(losses, expected, rtol=1e-3, atol=1e-4):
        row = int((losses - expected).abs().argmax())
        raise InfluenceError(
            f"the loss is not the cross-entropy of the logits and labels (row {row}: {float(losses[row]):.4g}, "
            f"expected {float(expected[row]):.4g}); only that loss is supported"
        )


def _as_sequence(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], -1, x.shape[-1])  # [B, features] or [B, ..., features] -> [B, T, features]


def _refuse_non_finite(block: str, values: Tensor) -> None:
    if not torch.isfinite(values.detach().sum()):  # one reduction; the row is looked for only when something is wrong
        bad = ~torch.isfinite(values.detach().flatten(1) if values.ndim > 1 else values.detach()[:, None]).all(1)
        if bad.any():
            raise NotFinite(block, int(bad.nonzero()[0]))
