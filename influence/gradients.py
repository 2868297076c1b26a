"""Per-point gradients of the selected blocks, as factors, from one batched backward pass.

A forward hook reads each block's input and makes its output a place where the backward pass can stop; the gradient
there of the SUM of per-point values holds every point's own gradient, because points do not interact: the model is in
evaluation mode, and the first backward pass makes sure of it. Weights are frozen, so no weight gradient is formed, and
nothing runs below the earliest block.

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

from influence.blocks import Block, hooked
from influence.calls import Call, Capture, widen
from influence.errors import InfluenceError, NotFinite, NotPerPoint
from influence.factored import Factor, Factors, squared_norms
from influence.layouts import LinearLayout, TableLayout
from influence.refusals import refuse_batch_statistics, refuse_compiled
from influence.sparse import TableFactor
from influence.unfused import fastpath

Batch = TypeVar("Batch")
REENTRANT = "inside a re-entrant activation checkpoint, which gives no per-point gradients: set use_reentrant=False"


@dataclass(frozen=True)
class _Call:
    """One call of a block.

    Attributes:
        capture: what it says of the factors.
        place: the layer's output, where the backward pass stops.
        finite: whether the sums of what it was given are.
    """

    capture: Capture
    place: Tensor
    finite: bool


class FactorSource:
    """Captures factors of the blocks of a model; a context manager that restores the model on exit.

    While it is open, torch's fused transformer layer, which calls no layer inside it, is off in the whole process.
    Factors of a model in half precision are float32.

    Args:
        model: the model; evaluation mode and frozen weights hold while the source is open.
        blocks: what to capture.

    Raises:
        InfluenceError: the model is compiled, so that hooks would not be called, or normalises over batches.
    """

    def __init__(self, model: nn.Module, blocks: Sequence[Block]) -> None:
        refuse_compiled(model)
        refuse_batch_statistics(model)
        self.model = model
        self.blocks = tuple(blocks)
        self._layouts = {block.name: block.layout for block in self.blocks}
        self._calls: dict[str, list[_Call]] = {}
        self._undo = ExitStack()
        self._recording = False
        self._pulling = False
        self._independent = False

    def __enter__(self) -> "FactorSource":
        with ExitStack() as undo:
            for module in self.model.modules():
                undo.callback(setattr, module, "training", module.training)
            for parameter in self.model.parameters():
                undo.callback(parameter.requires_grad_, parameter.requires_grad)
            undo.enter_context(fastpath.off())
            self.model.eval().requires_grad_(False)
            for block in hooked(self.blocks):
                undo.callback(block.module.register_forward_hook(self._hook(block), with_kwargs=True).remove)
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
            InfluenceError: a block's layer is not called, or not in a way in which it has per-point gradients.
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
        if any(module.training for module in self.model.modules()):
            raise InfluenceError("the forward pass put the model into training mode, so points may interact")
        return result

    def pull(self, outputs: Tensor, cotangent: Tensor | None = None) -> Factors:
        """The factors of one backward pass from what `forward` returned; its graph is freed.

        Args:
            outputs: per-point losses [B]; with a cotangent, outputs of any shape [B, ...].
            cotangent: weights of the outputs, in their shape; point b's gradient is that of their weighted sum.

        Raises:
            NotPerPoint: outputs without a cotangent are not one value per point, or points interact.
            NotFinite: a value, an input or a gradient is NaN or infinite.
            InfluenceError: outputs do not depend on a block.
        """
        self._check_rows(outputs, per_point=cotangent is None)
        if cotangent is None:
            refuse_non_finite("loss", outputs)
            cotangent = torch.ones_like(outputs)
        found = self._backward(outputs, cotangent, retain=False)
        return {name: self._factor(name, g) for name, g in found.items()}

    def pull_many(self, outputs: Tensor, cotangents: Tensor) -> Factors:
        """The same for R weightings of the outputs, with g of shape [R, B, T, o].

        Args:
            outputs: [B, ...].
            cotangents: [R, B, ...].
        """
        self._check_rows(outputs, per_point=False)
        found: dict[str, Tensor] = {}
        for r, cotangent in enumerate(cotangents):
            for name, g in self._backward(outputs, cotangent, retain=r + 1 < len(cotangents)).items():
                if name not in found:  # allocated once: a list would hold everything twice when stacked
                    found[name] = g.new_empty(len(cotangents), *g.shape)
                found[name][r] = g
        return {name: self._factor(name, g) for name, g in found.items()}

    def inputs(self, name: str) -> Tensor:
        """What a block was given in the last forward, [B, T, i]; of a large table the rows, [B, T].

        Raises:
            NotFinite: some of it is NaN or infinite.
        """
        calls = self._calls[name]
        a = _join([call.capture.a for call in calls])
        if not all(call.finite for call in calls):
            refuse_non_finite(name, a)
        return a

    def outputs(self, name: str) -> Tensor:
        """What a block's layer returned in its last call, detached and at least float32, [B, ..., outputs]."""
        return widen(self._calls[name][-1].place.detach())

    def _factor(self, name: str, g: Tensor) -> Factor:
        layout = self._layouts[name]
        if isinstance(layout, TableLayout):
            return TableFactor.of(self.inputs(name), g, layout.module.num_embeddings)
        return Factor(self.inputs(name), g)

    def _backward(self, outputs: Tensor, cotangent: Tensor, *, retain: bool) -> dict[str, Tensor]:
        """By block, g [B, T, o]."""
        if not self._independent:
            self._refuse_interaction(outputs, cotangent)
            self._independent = True
        found = {}
        for name, gradients in self._gradients(outputs, cotangent, retain=retain).items():
            if all(gradient is None for gradient in gradients):
                raise InfluenceError(f"the outputs do not depend on block {name!r}; select other blocks")
            columns = []
            for call, gradient in zip(self._calls[name], gradients):
                g = torch.zeros_like(call.place) if gradient is None else gradient
                refuse_non_finite(name, g)
                columns.append(call.capture.columns(widen(g)))
            found[name] = _join(columns)
        return found

    def _gradients(self, outputs: Tensor, cotangent: Tensor, *, retain: bool) -> dict[str, list[Tensor | None]]:
        """By block, the gradient at the output of each call; None where the outputs do not depend on it."""
        if not outputs.requires_grad:
            raise InfluenceError("the outputs carry no gradient: are they computed under no_grad, or detached?")
        places = [call.place for calls in self._calls.values() for call in calls]
        self._pulling = True
        try:
            gradients = torch.autograd.grad(
                outputs, places, cotangent.to(outputs), retain_graph=retain, allow_unused=True
            )
        except RuntimeError as error:
            if "use_reentrant" in str(error):  # torch has no class of its own for it
                raise InfluenceError(REENTRANT) from error
            raise
        finally:
            self._pulling = False
        remaining = iter(gradients)
        return {name: [next(remaining) for _ in calls] for name, calls in self._calls.items()}

    def _refuse_interaction(self, outputs: Tensor, cotangent: Tensor) -> None:
        """Refuse a batch in which the first row of the outputs depends on another row of a block."""
        first = torch.zeros_like(cotangent)
        first[0] = cotangent[0]
        for name, gradients in self._gradients(outputs, first, retain=True).items():
            others = [gradient[1:] for gradient in gradients if gradient is not None]
            if any((other[other.isfinite()] != 0).any() for other in others):
                raise NotPerPoint(
                    f"row 0 of the outputs depends on other rows of block {name!r}; its first dimension must be the "
                    "batch, and points may not interact"
                )

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

    def _hook(self, block: Block) -> Callable[..., Tensor | None]:
        def hook(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any], output: Any) -> Tensor | None:
            if not self._recording and not self._pulling:  # someone else calls the model
                return None
            if not isinstance(output, Tensor) or not output.ndim:
                kind = "single number" if isinstance(output, Tensor) else type(output).__name__
                raise InfluenceError(
                    f"block {block.name!r} returns a {kind}, not a tensor [B, ...]; select other blocks"
                )
            if not torch.is_grad_enabled():
                raise InfluenceError(f"block {block.name!r} is called under no_grad, or {REENTRANT}")
            place = output if output.requires_grad else output.requires_grad_()
            if self._recording:  # not when activation checkpointing computes it again for the backward pass
                try:
                    capture = block.layout.read(Call(given, named, place.detach()))
                except InfluenceError as error:
                    raise InfluenceError(f"block {block.name!r}: {error}") from error
                tensors = [x for x in (*given, *named.values()) if isinstance(x, Tensor)]
                finite = all(bool(x.detach().sum().isfinite()) for x in tensors)
                self._calls[block.name].append(_Call(capture, place, finite))
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
        InfluenceError: the block is no linear layer with one position per point, or its outputs are not the logits.
        NotFinite: a logit is NaN or infinite.
    """
    inputs, outputs = source.inputs(block.name), source.outputs(block.name)
    linear = isinstance(block.layout, LinearLayout) and inputs.shape[1] == 1
    if not linear or outputs.shape != logits.shape or not outputs.equal(widen(logits.detach())):
        raise InfluenceError(f"block {block.name!r} does not produce the logits as they are, so it is no softmax head")
    refuse_non_finite(block.name, outputs)
    return HeadOutputs(block.name, inputs[:, 0], outputs.softmax(-1))


def refuse_non_finite(block: str, values: Tensor) -> None:
    """Raise NotFinite, with the first bad row, if a value is NaN or infinite."""
    if not torch.isfinite(values.detach().sum()):  # one reduction; the row is looked for only when something is wrong
        bad = ~torch.isfinite(values.detach().flatten(1) if values.ndim > 1 else values.detach()[:, None]).all(1)
        if bad.any():
            raise NotFinite(block, int(bad.nonzero()[0]))


def _join(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), 1)
