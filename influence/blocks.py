"""Blocks: the groups of parameters on which influence is measured.

A block is one `nn.Linear`. Its weight and bias are one matrix W of shape [o, i], the bias being the last column, so
that the layer computes W a with a 1 appended to its input a.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from influence.errors import InfluenceError, UnknownBlock


@dataclass(frozen=True)
class Block:
    """The weight and bias of one linear layer, under the layer's name in the model."""

    name: str
    module: nn.Linear

    @property
    def weight_shape(self) -> tuple[int, int]:
        """Outputs o and inputs i of the layer; a bias counts as one more input."""
        return self.module.out_features, self.module.in_features + (self.module.bias is not None)

    @property
    def parameters(self) -> int:
        """Number of parameters, o * i."""
        outputs, inputs = self.weight_shape
        return outputs * inputs


@dataclass(frozen=True)
class BlockSummary:
    """How much of a model its selected blocks cover.

    Attributes:
        names: the blocks, in model order.
        parameters: how many parameters they hold.
        share: the same as a share of all parameters of the model, in [0, 1].
    """

    names: tuple[str, ...]
    parameters: int
    share: float


def linear_blocks(model: nn.Module) -> tuple[Block, ...]:
    """Every linear layer of the model, in model order."""
    return tuple(Block(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear))


def select(model: nn.Module, patterns: Sequence[str]) -> tuple[Block, ...]:
    """The linear layers whose names match one of the globs, in model order.

    Args:
        model: the model.
        patterns: shell-style globs on module names, e.g. `encoder.*.output`; case matters.

    Raises:
        UnknownBlock: a pattern matches nothing, or there is no pattern.
        InfluenceError: a selected weight is shared with another module, so its gradient is not that layer's alone.
    """
    available = linear_blocks(model)
    known = ", ".join(block.name for block in available) or "no linear layer"
    if not patterns:
        raise UnknownBlock(f"no block pattern given; the model has {known}")
    for pattern in patterns:
        if not any(fnmatchcase(block.name, pattern) for block in available):
            raise UnknownBlock(f"block pattern {pattern!r} matches nothing; the model has {known}")
    blocks = tuple(block for block in available if any(fnmatchcase(block.name, pattern) for pattern in patterns))
    _refuse_tied_weights(model, blocks)
    return blocks


def head(model: nn.Module) -> Block:
    """The last linear layer in model order, which produces the logits.

    Raises:
        UnknownBlock: the model has no linear layer.
    """
    available = linear_blocks(model)
    if not available:
        raise UnknownBlock("the model has no linear layer, so it has no head block")
    return available[-1]


def summarize(model: nn.Module, blocks: Iterable[Block]) -> BlockSummary:
    """Say which part of the model the blocks are."""
    chosen = tuple(blocks)
    parameters = sum(block.parameters for block in chosen)
    total = sum(parameter.numel() for parameter in model.parameters())
    return BlockSummary(tuple(block.name for block in chosen), parameters, parameters / total)


def _refuse_tied_weights(model: nn.Module, blocks: Sequence[Block]) -> None:
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    for block in blocks:
        names = owners[id(block.module.weight)]
        if len(names) > 1:
            raise InfluenceError(f"block {block.name!r} shares its weight ({', '.join(names)}); select other blocks")
