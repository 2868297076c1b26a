"""Per-point gradients of the selected blocks, as factors, from one batched backward pass.

A forward hook reads each block's input and makes its output a place where the backward pass can stop; the gradient
there of the SUM of per-point values holds every point's own gradient, because points do not interact: the model is in
evaluation mode. Weights are frozen, so no weight gradient is formed, and nothing runs below the earliest block.

    with FactorSource(model, blocks) as source:
        logits = source.forward(task.logits, batch)  # [B, C]
        factors = source.pull(logits, residuals)  # name -> Factor
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from influence.blocks import Block
from influence.errors import InfluenceError, NotFinite, NotPerPoint
from influence.factored import Factor, Factors, squared_norms
from influence.layouts import Capture

Batch = TypeVar("Batch")
HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class _Call:
    capture: Capture
    place: Tensor


class FactorSource:
    """Captures factors of the blocks of a model; a context manager that restores the model on exit.

    Factors of a model in half precision are float32.

    Args:
        model: the model; evaluation mode and frozen weights hold while the source is open.
        blocks: what to capture.

    Raises:
        InfluenceError: the model is compiled, so that hooks would not be called.
    """

    def __init__(self, model: nn.Module, blocks: Sequence[Block]) -> None:
        _refuse_compiled(model)
        self.model = model
        self.blocks = tuple(blocks)
        self._calls: dict[str, list[_Call]] = {}
        self._undo = ExitStack()
        self._recording = False
        self._pulling = False

    def __enter__(self) -> "FactorSource":
        with ExitStack() as undo:
            for module in self.model.modules():
                undo.callback(setattr, module, "training", module.training)
            for parameter in self.model.parameters():
                undo.callback(parameter.requires_grad_, parameter.requires_grad)
            self.model.eval().requires_grad_(False)
            for block in self.blocks:
                undo.callback(block.module.register_forward_hook(self._hook(block)).remove)
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()
        self._calls.clear()

    def forward(self, function: Callable[[nn.Module, Batch], Tensor], batch: Batch) -> Tensor:
        """Run `function(model, batch)` with hooks on, forgetting what the last forward captured.

        Args:
            function: returns per-point losses [B] or logits [B, C] of the batch.
            batch: whatever the function takes.

        Raises:
            InfluenceError: a block's layer is not called.
        """
        self._calls = {block.name: [] for block in self.blocks}
        self._recording = True
        try:
            with torch.enable_grad():
                result = function(self.model, batch)
        finally:
            self._recording = False
        for name, calls in self._calls.items():
            if not calls:
                raise InfluenceError(f"block {name!r} is not called in the forward pass; select other blocks")
        return result

    def pull(self, outputs: Tensor, cotangent: Tensor | None = None) -> Factors:
        """The factors of one backward pass from what `forward` returned; its graph is freed.

        Args:
            outputs: per-point losses [B]; with a cotangent, outputs of any shape [B, ...].
            cotangent: weights of the outputs, in their shape; point b's gradient is that of their weighted sum.

        Raises:
            NotPerPoint: outputs without a cotangent are not one value per point.
            NotFinite: a value or a gradient is NaN or infinite.
            InfluenceError: outputs do not depend on a block.
        """
        self._check_rows(outputs, per_point=cotangent is None)
        if cotangent is None:
            refuse_non_finite("loss", outputs)
            cotangent = torch.ones_like(outputs)
        return self._factors(self._backward(outputs, cotangent, retain=False))

    def pull_many(self, outputs: Tensor, cotangents: Tensor) -> Factors:
        """The same for R weightings of the outputs, with g of shape [R, B, T, o].

        Args:
            outputs: [B, ...].
            cotangents: [R, B, ...].
        """
        self._check_rows(outputs, per_point=False)
        found: dict[str, Tensor] = {}
        for r, cotangent in enumerate(cotangents):
            retain = r + 1 < len(cotangents)
            for name, factor in self._factors(self._backward(outputs, cotangent, retain=retain)).items():
                if name not in found:  # allocated once: a list would hold everything twice when stacked
                    found[name] = factor.g.new_empty(len(cotangents), *factor.g.shape)
                found[name][r] = factor.g
        return {name: Factor(self.inputs(name), g) for name, g in found.items()}

    def inputs(self, name: str) -> Tensor:
        """What a block was given in the last forward, [B, T, i]."""
        calls = [_full(call.capture.a) for call in self._calls[name]]
        return calls[0] if len(calls) == 1 else torch.cat(calls, 1)

    def outputs(self, name: str) -> Tensor:
        """What a block's layer returned in its last call, detached, [B, ..., outputs]."""
        return self._calls[name][-1].place.detach()

    def _factors(self, gradients: dict[str, list[Tensor]]) -> dict[str, Factor]:
        return {
            name: Factor(self.inputs(name), columns[0] if len(columns) == 1 else torch.cat(columns, 1))
            for name, columns in gradients.items()
        }

    def _backward(self, outputs: Tensor, cotangent: Tensor, *, retain: bool) -> dict[str, list[Tensor]]:
        """By block, g [B, T, o] of each call."""
        if not outputs.requires_grad:
            raise InfluenceError(
                "the outputs carry no gradient: they are computed under no_grad, detached, or inside a re-entrant "
                "checkpoint (use_reentrant=False works)"
            )
        places = [call.place for calls in self._calls.values() for call in calls]
        self._pulling = True
        try:
            gradients = iter(
                torch.autograd.grad(outputs, places, cotangent.to(outputs), retain_graph=retain, allow_unused=True)
            )
        finally:
            self._pulling = False
        found = {}
        for name, calls in self._calls.items():
            of_calls = [(call, next(gradients)) for call in calls]
            used = [gradient for _, gradient in of_calls if gradient is not None]
            if not used:
                raise InfluenceError(f"the outputs do not depend on block {name!r}; select other blocks")
            for gradient in used:
                refuse_non_finite(name, gradient)
            found[name] = [
                call.capture.columns(_full(torch.zeros_like(call.place) if gradient is None else gradient))
                for call, gradient in of_calls
            ]
        return found

    def _check_rows(self, outputs: Tensor, *, per_point: bool) -> None:
        if outputs.ndim == 0 or (per_point and outputs.ndim > 1):
            given = "a single number" if outputs.ndim == 0 else f"of shape {list(outputs.shape)}"
            raise NotPerPoint(f"the loss is {given}, not one value per point [B]; use reduction='none'")
        for name, calls in self._calls.items():
            if any(len(call.capture.a) != len(outputs) for call in calls):
                raise NotPerPoint(
                    f"the loss has {len(outputs)} values but block {name!r} saw {len(calls[0].capture.a)} rows; give "
                    "one value per point, and select blocks whose first dimension is the batch"
                )

    def _hook(self, block: Block) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor | None]:
        def hook(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor | None:
            if not self._recording and not self._pulling:  # someone else calls the model
                return None
            place = output if output.requires_grad else output.requires_grad_()
            if self._recording:  # not when activation checkpointing computes it again for the backward pass
                self._calls[block.name].append(_Call(block.layout.read(arguments), place))
            return place.clone()  # so that an in-place activation does not move the place where the backward stops

        return hook


def gradient_energy(source: FactorSource, pulled: Iterable[Factors]) -> dict[str, float]:
    """Mean squared norm of the per-point gradients of each block.

    Args:
        source: whose blocks are meant.
        pulled: factors of the losses of a probe, batch by batch.
    """
    sums, count = {block.name: 0.0 for block in source.blocks}, 0
    for factors in pulled:
        for name, factor in factors.items():
            sums[name] += float(squared_norms(factor).double().sum())
        count += len(next(iter(factors.values())))
    if not count:
        raise InfluenceError("no point given to measure gradient energy on")
    return {name: value / count for name, value in sums.items()}


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

    def factors(self, cotangents: Tensor) -> Factors:
        """What a backward pass from the logits would give: the head's g is the cotangent itself.

        Args:
            cotangents: [B, C], or of R weightings [R, B, C].
        """
        return {self.name: Factor(self.inputs[:, None], cotangents.to(self.inputs)[..., None, :])}


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
    refuse_non_finite(block.name, outputs)
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


def refuse_non_finite(block: str, values: Tensor) -> None:
    """Raise NotFinite, with the first bad row, if a value is NaN or infinite."""
    if not torch.isfinite(values.detach().sum()):  # one reduction; the row is looked for only when something is wrong
        bad = ~torch.isfinite(values.detach().flatten(1) if values.ndim > 1 else values.detach()[:, None]).all(1)
        if bad.any():
            raise NotFinite(block, int(bad.nonzero()[0]))


def _full(x: Tensor) -> Tensor:
    return x.float() if x.dtype in HALF else x


def _refuse_compiled(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            raise InfluenceError(
                f"{name or 'the model'} is compiled, and a compiled module does not call its hooks; give the model as "
                "it was before torch.compile (it shares the weights)"
            )
