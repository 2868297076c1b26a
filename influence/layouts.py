"""How the per-point gradient of each kind of layer becomes factors G_b = sum_t g_bt a_bt'.

| layer | a, one row per position | g | block matrix |
|---|---|---|---|
| Linear | input, 1 appended where it has a bias | gradient at the output | W [o, i] |
| Conv1d, Conv2d | patch under the kernel, 1 appended | the same, one position per output pixel | W [o, i k k] |
| Embedding | one-hot of the token | the same, one position per token | table' [d, V] |
| grouped Conv, Layer-, Group-, BatchNorm (eval) | rows of the identity | columns of G_b, formed at once | [o, i] |
| any other module with parameters of its own | 1 | G_b by torch.func | [p, 1] |

The last three have no input statistics, so their input basis is the identity (`free`), and a Kronecker curvature keeps
the exact covariance of their outputs. All of a layer's calls in one forward are positions of one sequence. Factors are
at least float32, whatever the model computes in.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.nn import functional as F

from influence.errors import InfluenceError

LARGEST_FREE = 4096  # rows of a free block's output covariance, or columns of a one-hot input
SAME = 0.05  # of the largest output: above what half precision rounds away, below what a wrong reading changes
Conv = nn.Conv1d | nn.Conv2d
Norm = nn.LayerNorm | nn.GroupNorm | nn.BatchNorm1d | nn.BatchNorm2d


@dataclass(frozen=True)
class Call:
    """One call of a module.

    Attributes:
        arguments: by position.
        keywords: by name.
        output: what it returned, detached, [B, ...].
    """

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    output: Tensor

    def input(self, dimensions: int) -> Tensor:
        """What a layer of torch.nn was given, detached.

        Raises:
            InfluenceError: it has fewer dimensions, so that none of them is the batch.
        """
        given: Tensor = self.arguments[0] if self.arguments else self.keywords["input"]
        if given.ndim < dimensions:
            raise InfluenceError(f"an input of shape {list(given.shape)} has no batch dimension; select other blocks")
        return widen(given.detach())


@dataclass(frozen=True)
class Capture:
    """What a call says of the factors of its layer.

    Attributes:
        a: [B, T, i].
        columns: turns the gradient at the layer's output into g [B, T, o].
    """

    a: Tensor
    columns: Callable[[Tensor], Tensor]


class Layout(Protocol):
    """The shape of a block and the reading of a call."""

    @property
    def shape(self) -> tuple[int, int]:
        """Of the block matrix, (o, i)."""

    @property
    def free(self) -> bool:
        """Whether the input basis is the identity, whatever the data."""

    def read(self, call: Call) -> Capture:
        """What the forward pass says; nothing that the model changes later in place."""


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
        a = _sequence(call.input(2))  # [B, T, i]
        return Capture(_with_bias(a) if self.module.bias is not None else a.clone(), _sequence)


@dataclass(frozen=True)
class ConvLayout:
    """A convolution, as a linear layer on patches."""

    module: Conv
    free = False

    @property
    def shape(self) -> tuple[int, int]:
        """Output channels, and the entries of a patch with the bias as one more."""
        return self.module.out_channels, _patch(self.module) + (self.module.bias is not None)

    def read(self, call: Call) -> Capture:
        """Positions are output pixels."""
        patches = _patches(call, self.module)  # [B, channels, kernel..., pixels...]
        spatial = len(self.module.kernel_size)
        inner, pixels = patches.shape[1 : 2 + spatial], patches.shape[2 + spatial :]
        a = patches.new_empty(self.shape[1], len(patches), math.prod(pixels))  # so that [B T, i] is a view of it
        a[: math.prod(inner)].view(*inner, len(patches), *pixels).copy_(patches.movedim(0, 1 + spatial))
        a[math.prod(inner) :] = 1
        return Capture(a.permute(1, 2, 0), _pixels)


@dataclass(frozen=True)
class GroupedConvLayout(ConvLayout):
    """A convolution in groups: rows of W see different channels, so gradients are formed at once."""

    free = True

    def read(self, call: Call) -> Capture:
        """Columns of the gradient are positions."""
        conv, (o, i), b = self.module, self.shape, len(call.output)
        rows = _patch(conv)
        patches = _patches(call, conv).reshape(b, conv.groups, rows, -1)  # [B, groups, rows, T]

        def columns(gradient: Tensor) -> Tensor:
            g = gradient.reshape(b, conv.groups, o // conv.groups, -1)  # [B, groups, outputs of a group, T]
            weight = (g @ patches.mT).reshape(b, o, rows)
            return torch.cat([weight, g.sum(3).reshape(b, o, 1)], 2)[..., :i].mT  # [B, i, o]

        return Capture(_identity(patches, b, i), columns)


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
        _refuse_large(self.module.num_embeddings, "embedding with {} rows")
        tokens = call.input(1).long()
        tokens = tokens.reshape(len(tokens), -1)  # [B, T]
        a = widen(call.output).new_zeros(*tokens.shape, self.module.num_embeddings)  # [B, T, V]
        a.scatter_(2, tokens[:, :, None], 1)
        if self.module.padding_idx is not None:
            a[..., self.module.padding_idx] = 0
        return Capture(a, _sequence)


@dataclass(frozen=True)
class NormLayout:
    """Scale and shift after normalisation, as two columns."""

    module: Norm
    free = True

    @property
    def shape(self) -> tuple[int, int]:
        """Normalised features, and scale with shift."""
        return self.module.weight.numel(), 1 + (self.module.bias is not None)

    def read(self, call: Call) -> Capture:
        """Columns of the gradient are positions."""
        features_last, (o, i) = isinstance(self.module, nn.LayerNorm), self.shape
        _refuse_large(o, "normalisation of {} features")
        x = call.input(1 + self.module.weight.ndim)
        normalised = _normalise(x, self.module)

        def columns(gradient: Tensor) -> Tensor:
            scale = _by_feature(gradient * normalised, o, last=features_last)  # [B, o]
            both = [scale, _by_feature(gradient, o, last=features_last)][:i]
            return torch.stack(both, 1)  # [B, i, o]

        return Capture(_identity(x, len(x), i), columns)


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


def _conv(module: Conv) -> Layout:
    return ConvLayout(module) if module.groups == 1 else GroupedConvLayout(module)


LAYOUTS: dict[type[nn.Module], Callable[[Any], Layout]] = {
    nn.Linear: LinearLayout,
    nn.Conv1d: _conv,
    nn.Conv2d: _conv,
    nn.Embedding: EmbeddingLayout,
    nn.LayerNorm: NormLayout,
    nn.GroupNorm: NormLayout,
    nn.BatchNorm1d: NormLayout,
    nn.BatchNorm2d: NormLayout,
}


def layout_of(module: nn.Module) -> Layout | None:
    """The layout of a module; None if it has no parameters of its own.

    A class of one's own that overrides `forward`, adds parameters or computes its weight is not what its base is.
    """
    own = {name for name, _ in module.named_parameters(recurse=False)}
    if not own:
        return None
    forward = getattr(module.forward, "__func__", None)
    for kind, layout in LAYOUTS.items():
        if isinstance(module, kind) and forward is kind.forward and own in ({"weight"}, {"weight", "bias"}):
            return layout(module)
    return AnyLayout(module)


def widen(x: Tensor) -> Tensor:
    """Half precision as float32; anything else as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32)) if x.is_floating_point() else x


def _kept(value: Any) -> Any:
    return widen(value.detach()).clone() if isinstance(value, Tensor) else value


def _sequence(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], -1, x.shape[-1])  # [B, features] or [B, ..., features] -> [B, T, features]


def _pixels(gradient: Tensor) -> Tensor:
    return gradient.flatten(2).mT  # [B, o, pixels...] -> [B, T, o]


def _with_bias(a: Tensor) -> Tensor:
    return torch.cat([a, a.new_ones(*a.shape[:2], 1)], 2)


def _identity(like: Tensor, points: int, size: int) -> Tensor:
    return torch.eye(size, dtype=like.dtype).expand(points, size, size)


def _patch(conv: Conv) -> int:
    """Entries of a patch; not read off the weight, which may be on other ranks."""
    return conv.in_channels // conv.groups * math.prod(conv.kernel_size)


def _patches(call: Call, conv: Conv) -> Tensor:
    """What lies under the kernel at every output pixel, as a view: [B, channels, kernel..., pixels...]."""
    if conv.padding_mode != "zeros":
        raise InfluenceError(f"padding_mode {conv.padding_mode!r}: only 'zeros' is supported; select other blocks")
    spatial = len(conv.kernel_size)
    x = F.pad(call.input(2 + spatial), [side for d in reversed(range(spatial)) for side in _padding(conv, d)])
    for d, (size, stride, dilation) in enumerate(zip(conv.kernel_size, conv.stride, conv.dilation)):
        x = x.unfold(2 + d, dilation * (size - 1) + 1, stride)[..., ::dilation]  # its kernel dimension goes last
    return x.permute(0, 1, *range(2 + spatial, 2 + 2 * spatial), *range(2, 2 + spatial))


def _padding(conv: Conv, dimension: int) -> tuple[int, int]:
    if conv.padding == "valid":
        return 0, 0
    if conv.padding == "same":  # torch puts the odd one at the end
        whole = conv.dilation[dimension] * (conv.kernel_size[dimension] - 1)
        return whole // 2, whole - whole // 2
    return (int(conv.padding[dimension]),) * 2


def _normalise(x: Tensor, module: Norm) -> Tensor:
    if isinstance(module, nn.LayerNorm):
        return F.layer_norm(x, module.normalized_shape, eps=module.eps)
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
