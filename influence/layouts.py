"""How the per-point gradient of each kind of layer becomes factors G_b = sum_t g_bt a_bt'.

| layer | a, one row per position | g | block matrix |
|---|---|---|---|
| Linear | input, 1 appended where it has a bias | gradient at the output | W [o, i] |
| Conv1d, Conv2d | patch under the kernel, 1 appended | the same, one position per output pixel | W [o, i k k] |
| Embedding | one-hot of the token | the same, one position per token | table' [d, V] |
| grouped Conv, Layer-, Group-, BatchNorm (eval) | rows of the identity | columns of G_b, formed at once | [o, i] |
| any other module with parameters of its own | 1 | G_b by torch.func | [p, 1] |

The last three have no input statistics, so their input basis is the identity (`free`), and a Kronecker curvature keeps
the exact covariance of their outputs. All of a layer's calls in one forward are positions of one sequence.
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
Conv = nn.Conv1d | nn.Conv2d
Norm = nn.LayerNorm | nn.GroupNorm | nn.BatchNorm1d | nn.BatchNorm2d


@dataclass(frozen=True)
class Capture:
    """One call of a layer.

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

    def read(self, arguments: tuple[Any, ...]) -> Capture:
        """What the forward pass says, from the positional arguments of the call."""


def layout_of(module: nn.Module) -> Layout | None:
    """The layout of a module; None if it has no parameters of its own."""
    if not any(True for _ in module.parameters(recurse=False)):
        return None
    if isinstance(module, nn.Linear):
        return LinearLayout(module)
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        return ConvLayout(module) if module.groups == 1 else GroupedConvLayout(module)
    if isinstance(module, nn.Embedding):
        return EmbeddingLayout(module)
    if isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.BatchNorm1d | nn.BatchNorm2d):
        return NormLayout(module)
    return AnyLayout(module)


@dataclass(frozen=True)
class LinearLayout:
    """A linear layer, at every position of its input."""

    module: nn.Linear
    free = False

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs, and inputs with the bias as one more."""
        return self.module.out_features, self.module.in_features + (self.module.bias is not None)

    def read(self, arguments: tuple[Any, ...]) -> Capture:
        """Positions are all dimensions between the first and the last."""
        a = _sequence(arguments[0].detach())  # [B, T, i]
        return Capture(_with_bias(a) if self.module.bias is not None else a.clone(), _sequence)


@dataclass(frozen=True)
class ConvLayout:
    """A convolution, as a linear layer on patches."""

    module: Conv
    free = False

    @property
    def shape(self) -> tuple[int, int]:
        """Output channels, and the entries of a patch with the bias as one more."""
        return self.module.out_channels, self.module.weight[0].numel() + (self.module.bias is not None)

    def read(self, arguments: tuple[Any, ...]) -> Capture:
        """Positions are output pixels."""
        patches = _patches(arguments[0].detach(), self.module)  # [B, channels, kernel..., pixels...]
        i, pixels = self.module.weight[0].numel(), math.prod(patches.shape[-len(self.module.kernel_size) :])
        a = patches.new_empty(len(patches), self.shape[1], pixels)
        a[:, :i].view(patches.shape).copy_(patches)  # the only copy that is made
        a[:, i:] = 1
        return Capture(a.mT, _pixels)


@dataclass(frozen=True)
class GroupedConvLayout:
    """A convolution in groups: rows of W see different channels, so gradients are formed at once."""

    module: Conv
    free = True

    @property
    def shape(self) -> tuple[int, int]:
        """Output channels, and the entries of one group's patch with the bias as one more."""
        return self.module.out_channels, self.module.weight[0].numel() + (self.module.bias is not None)

    def read(self, arguments: tuple[Any, ...]) -> Capture:
        """Columns of the gradient are positions."""
        conv, (o, i) = self.module, self.shape
        b = len(arguments[0])
        rows = conv.weight[0].numel()
        patches = _patches(arguments[0].detach(), conv).reshape(b, conv.groups, rows, -1)  # [B, groups, i, T]

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

    def read(self, arguments: tuple[Any, ...]) -> Capture:
        """Positions are tokens."""
        tokens, table = arguments[0].flatten(1) if arguments[0].ndim > 1 else arguments[0][:, None], self.module
        _refuse_large(table.num_embeddings, "embedding with {} rows")
        a = F.one_hot(tokens, table.num_embeddings).to(table.weight.dtype)  # [B, T, V]
        if table.padding_idx is not None:
            a[..., table.padding_idx] = 0
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

    def read(self, arguments: tuple[Any, ...]) -> Capture:
        """Columns of the gradient are positions."""
        x, (o, i) = arguments[0].detach(), self.shape
        _refuse_large(o, "normalisation of {} features")
        normalised = _normalise(x, self.module)
        features_last = isinstance(self.module, nn.LayerNorm)

        def columns(gradient: Tensor) -> Tensor:
            scale = _by_feature(gradient * normalised, o, last=features_last)  # [B, o]
            both = [scale, _by_feature(gradient, o, last=features_last)][:i]
            return torch.stack(both, 1)  # [B, i, o]

        return Capture(_identity(x, len(x), i), columns)


@dataclass(frozen=True)
class AnyLayout:
    """Whatever a module does with its own parameters: per-point gradients through torch.func."""

    module: nn.Module
    free = True

    @property
    def shape(self) -> tuple[int, int]:
        """All own parameters in one column."""
        return sum(parameter.numel() for parameter in self.module.parameters(recurse=False)), 1

    def read(self, arguments: tuple[Any, ...]) -> Capture:
        """The one position has input 1."""
        _refuse_large(self.shape[0], f"{type(self.module).__name__} with {{}} parameters of its own")
        own = {name: parameter.detach() for name, parameter in self.module.named_parameters(recurse=False)}
        inputs = tuple(x.detach() if isinstance(x, Tensor) else x for x in arguments)
        axes = tuple(0 if isinstance(x, Tensor) else None for x in inputs)

        def one(gradient: Tensor, *point: Any) -> Tensor:
            single = tuple(x[None] if isinstance(x, Tensor) else x for x in point)
            pull: Callable[[Tensor], tuple[dict[str, Tensor]]]
            _, pull = vjp(lambda values: functional_call(self.module, values, single), own)  # type: ignore[misc]
            return torch.cat([value.flatten() for value in pull(gradient[None])[0].values()])

        def columns(gradient: Tensor) -> Tensor:
            return vmap(one, (0, *axes))(gradient, *inputs)[:, None]  # [B, 1, p]

        first = next(x for x in inputs if isinstance(x, Tensor))
        return Capture(next(iter(own.values())).new_ones(len(first), 1, 1), columns)


def _sequence(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], -1, x.shape[-1])  # [B, features] or [B, ..., features] -> [B, T, features]


def _pixels(gradient: Tensor) -> Tensor:
    return gradient.flatten(2).mT  # [B, o, pixels...] -> [B, T, o]


def _with_bias(a: Tensor) -> Tensor:
    return torch.cat([a, a.new_ones(*a.shape[:2], 1)], 2)


def _identity(like: Tensor, points: int, size: int) -> Tensor:
    return torch.eye(size, dtype=like.dtype).expand(points, size, size)


def _patches(x: Tensor, conv: Conv) -> Tensor:
    """What lies under the kernel at every output pixel, as a view: [B, channels, kernel..., pixels...]."""
    if conv.padding_mode != "zeros":
        raise InfluenceError(f"padding_mode {conv.padding_mode!r}: only 'zeros' is supported; select other blocks")
    spatial = len(conv.kernel_size)
    x = F.pad(x, [side for d in reversed(range(spatial)) for side in _padding(conv, d)])
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
    if module.running_mean is None:
        raise InfluenceError("a BatchNorm without running statistics mixes the points of a batch; select other blocks")
    return F.batch_norm(x, module.running_mean, module.running_var, training=False, eps=module.eps)


def _by_feature(values: Tensor, features: int, *, last: bool) -> Tensor:
    """Sum over positions: [B, ..., features] or [B, features, ...] -> [B, features]."""
    if last:
        return values.reshape(len(values), -1, features).sum(1)
    return values.reshape(len(values), features, -1).sum(2)


def _refuse_large(size: int, what: str) -> None:
    if size > LARGEST_FREE:
        raise InfluenceError(f"{what.format(size)}: at most {LARGEST_FREE} are supported; select other blocks")
