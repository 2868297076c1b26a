"""How the per-point gradient of each kind of layer becomes factors G_b = sum_t g_bt a_bt'.

| layer | a, one row per position | g | block matrix |
|---|---|---|---|
| Linear | input, 1 appended where it has a bias | gradient at the output | W [o, i] |
| Conv1D of GPT-2 | the same | the same | W' [o, i] |
| Conv1d, Conv2d | patch under the kernel, 1 appended | the same, one position per output pixel | W [o, i k k] |
| Embedding | one-hot of the token | the same, one position per token | table' [d, V] |
| large Embedding | which row (`sparse`) | the same, one position per row that a point touches | table' [d, V] |
| grouped Conv, norms of torch (Batch- in eval) | rows of the identity | columns of G_b, formed at once | [o, i] |
| Embedding and Linear of one weight (`tied`) | the same | the same | W [V, d] |
| any other module with parameters of its own | 1 | G_b by torch.func | [p, 1] |

The last five have no input statistics, so their input basis is the identity (`free`), and a Kronecker curvature keeps
the exact covariance of their outputs. All of a layer's calls in one forward are positions of one sequence. Factors are
at least float32, whatever the model computes in.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.nn import functional as F

from influence.calls import Call, Capture, Layout, identity, sequence, widen
from influence.convolutions import conv_layout
from influence.errors import InfluenceError

LARGEST_FREE = 4096  # rows of a free block's output covariance, or columns of a one-hot input that is formed
SAME = 0.05  # of the largest output: above what half precision rounds away, below what a wrong reading changes
Norm = nn.LayerNorm | nn.RMSNorm | nn.GroupNorm | nn.BatchNorm1d | nn.BatchNorm2d


@dataclass(frozen=True)
class LinearLayout:
    """A linear layer, at every position of its input."""

    module: nn.Linear
    free = False

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs, and inputs with the bias as one more."""
        return self.module.out_features, self.module.in_features + (self.module.bias is not None)

    def read(self, call: Call) -> Capture:
        """Positions are all dimensions between the first and the last."""
        a = sequence(call.input(2))  # [B, T, i]
        return Capture(_with_bias(a) if self.module.bias is not None else a.clone(), sequence)


@dataclass(frozen=True)
class TransposedLayout:
    """A linear layer whose weight is [i, o]: y = x W + b."""

    module: nn.Module
    free = False

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs, and inputs with the bias as one more."""
        i, o = self.module.get_parameter("weight").shape
        return o, i + 1

    def read(self, call: Call) -> Capture:
        """Positions are all dimensions between the first and the last."""
        return Capture(_with_bias(sequence(call.input(2))), sequence)


@dataclass(frozen=True)
class EmbeddingLayout:
    """A table of vectors; a padding index gets no gradient."""

    module: nn.Embedding
    free = True

    @property
    def shape(self) -> tuple[int, int]:
        """Dimension and vocabulary."""
        return self.module.embedding_dim, self.module.num_embeddings

    def read(self, call: Call) -> Capture:
        """Positions are tokens."""
        tokens = tokens_of(call, self.module)
        a = widen(call.output).new_zeros(*tokens.shape, self.module.num_embeddings)  # [B, T, V]
        there = (tokens >= 0).to(a)[:, :, None]
        a.scatter_(2, tokens.clamp(min=0)[:, :, None], there)
        return Capture(a, lambda gradient: sequence(gradient) * there)


@dataclass(frozen=True)
class TableLayout(EmbeddingLayout):
    """A table too large for one-hot inputs: `a` is the row of each token, [B, T], -1 where there is none."""

    def read(self, call: Call) -> Capture:
        """Positions are tokens."""
        return Capture(tokens_of(call, self.module), sequence)


@dataclass(frozen=True)
class NormLayout:
    """Scale and shift after normalisation, as two columns."""

    module: Norm
    free = True

    @property
    def shape(self) -> tuple[int, int]:
        """Normalised features, and scale with shift."""
        return self.module.weight.numel(), 1 + (getattr(self.module, "bias", None) is not None)

    def read(self, call: Call) -> Capture:
        """Columns of the gradient are positions."""
        features_last, (o, i) = isinstance(self.module, nn.LayerNorm | nn.RMSNorm), self.shape
        _refuse_large(o, "normalisation of {} features")
        x = call.input(1 + self.module.weight.ndim)
        normalised = _normalise(x, self.module)

        def columns(gradient: Tensor) -> Tensor:
            scale = _by_feature(gradient * normalised, o, last=features_last)  # [B, o]
            both = [scale, _by_feature(gradient, o, last=features_last)][:i]
            return torch.stack(both, 1)  # [B, i, o]

        return Capture(identity(x, len(x), i), columns)


@dataclass(frozen=True)
class AnyLayout:
    """Whatever a module does with its own parameters: per-point gradients through torch.func.

    Tensors among its arguments whose first dimension is that of its output have one row per point; others are shared.
    """

    module: nn.Module
    free = True

    @property
    def shape(self) -> tuple[int, int]:
        """All own parameters in one column."""
        return sum(parameter.numel() for parameter in self.module.parameters(recurse=False)), 1

    def read(self, call: Call) -> Capture:
        """The one position has input 1."""
        _refuse_large(self.shape[0], f"{type(self.module).__name__} with {{}} parameters of its own")
        points, module = len(call.output), self.module
        own = {name: widen(value.detach()) for name, value in module.named_parameters(recurse=False)}
        state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        others = {name: widen(value.detach()) for name, value in state.items() if name not in own}
        given = [_kept(value) for value in (*call.arguments, *call.keywords.values())]
        axes = tuple(0 if isinstance(x, Tensor) and x.ndim and len(x) == points else None for x in given)

        def one(gradient: Tensor, *point: Any) -> tuple[Tensor, Tensor]:
            single = [x if axis is None else x[None] for x, axis in zip(point, axes)]
            arguments = tuple(single[: len(call.arguments)])
            keywords = dict(zip(call.keywords, single[len(call.arguments) :]))
            output, pull = vjp(lambda values: functional_call(module, (values, others), arguments, keywords), own)[:2]
            return torch.cat([value.flatten() for value in pull(gradient[None].to(output))[0].values()]), output[0]

        def columns(gradient: Tensor) -> Tensor:
            try:
                found, alone = vmap(one, (0, *axes))(gradient, *given)  # [B, p], [B, ...]
            except RuntimeError as error:
                raise InfluenceError(
                    f"{type(module).__name__} cannot go through torch.func: {error}; select other blocks"
                ) from error
            if (alone - call.output).abs().max() > SAME * call.output.abs().max():
                raise InfluenceError(
                    f"{type(module).__name__} gives a point another output alone than in its batch; select other blocks"
                )
            return found[:, None]  # [B, 1, p]

        return Capture(next(iter(own.values())).new_ones(points, 1, 1), columns)


def _embedding(module: nn.Embedding) -> Layout:
    return EmbeddingLayout(module) if module.num_embeddings <= LARGEST_FREE else TableLayout(module)


LAYOUTS: dict[type[nn.Module], Callable[[Any], Layout]] = {
    nn.Linear: LinearLayout,
    nn.Conv1d: conv_layout,
    nn.Conv2d: conv_layout,
    nn.Embedding: _embedding,
    nn.LayerNorm: NormLayout,
    nn.RMSNorm: NormLayout,
    nn.GroupNorm: NormLayout,
    nn.BatchNorm1d: NormLayout,
    nn.BatchNorm2d: NormLayout,
}
FOREIGN: dict[tuple[str, str], Callable[[Any], Layout]] = {("transformers.pytorch_utils", "Conv1D"): TransposedLayout}
"""The same for classes of packages that are not imported here, by module and name."""


def layout_of(module: nn.Module) -> Layout | None:
    """The layout of a module; None if it has no parameters of its own.

    A class of one's own that overrides `forward`, adds parameters or computes its weight is not what its base is.
    """
    own = {name for name, _ in module.named_parameters(recurse=False)}
    if not own:
        return None
    forward = getattr(module.forward, "__func__", None)
    for kind in type(module).__mro__:
        layout = LAYOUTS.get(kind) or FOREIGN.get((kind.__module__, kind.__qualname__))
        inherited = forward is getattr(kind, "forward", None) and own in ({"weight"}, {"weight", "bias"})
        if layout is not None and inherited:
            return layout(module)
    return AnyLayout(module)


def _kept(value: Any) -> Any:
    return widen(value.detach()).clone() if isinstance(value, Tensor) else value


def _with_bias(a: Tensor) -> Tensor:
    return torch.cat([a, a.new_ones(*a.shape[:2], 1)], 2)


def tokens_of(call: Call, module: nn.Embedding) -> Tensor:
    """The row that each position of a table's input reads, -1 for padding, [B, T]."""
    tokens = call.input(1).long()
    tokens = tokens.reshape(len(tokens), -1)
    return tokens if module.padding_idx is None else tokens.masked_fill(tokens == module.padding_idx, -1)


def _normalise(x: Tensor, module: Norm) -> Tensor:
    if isinstance(module, nn.LayerNorm):
        return F.layer_norm(x, module.normalized_shape, eps=module.eps)
    if isinstance(module, nn.RMSNorm):
        return F.rms_norm(x, list(module.normalized_shape), eps=module.eps)
    if isinstance(module, nn.GroupNorm):
        return F.group_norm(x, module.num_groups, eps=module.eps)
    mean, variance = module.running_mean, module.running_var
    if mean is None or variance is None:
        raise InfluenceError("BatchNorm without running statistics mixes the points of a batch")
    return F.batch_norm(x, widen(mean), widen(variance), training=False, eps=module.eps)


def _by_feature(values: Tensor, features: int, *, last: bool) -> Tensor:
    """Sum over positions: [B, ..., features] or [B, features, ...] -> [B, features]."""
    if last:
        return values.reshape(len(values), -1, features).sum(1)
    return values.reshape(len(values), features, -1).sum(2)


def _refuse_large(size: int, what: str) -> None:
    if size > LARGEST_FREE:
        raise InfluenceError(f"{what.format(size)}: at most {LARGEST_FREE} are supported; select other blocks")
