"""Convolutions as linear layers on patches, one position per output pixel (`layouts`)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from influence.calls import Call, Capture, Layout, identity
from influence.errors import InfluenceError

Conv = nn.Conv1d | nn.Conv2d


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

        return Capture(identity(patches, b, i), columns)


def conv_layout(module: Conv) -> Layout:
    """Of a convolution in one group or several."""
    return ConvLayout(module) if module.groups == 1 else GroupedConvLayout(module)


def _pixels(gradient: Tensor) -> Tensor:
    return gradient.flatten(2).mT  # [B, o, pixels...] -> [B, T, o]


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
