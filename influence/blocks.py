"""Blocks: the groups of parameters on which influence is measured, and how to choose them.

A block is what one module owns: its weight and bias as one matrix [o, i] (`layouts`). Selections take blocks in model
order and give some of them back in that order, so they compose:

    blocks = within(budget=200_000)(by_type("Linear", "Conv2d")(available(model)))
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import takewhile
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from influence.calls import Layout
from influence.errors import InfluenceError, UnknownBlock
from influence.layouts import LARGEST_FREE, EmbeddingLayout, LinearLayout, TransposedLayout, layout_of
from influence.tied import OutputLayout, TiedLayout


@dataclass(frozen=True)
class Block:
    """The parameters of one module, under the module's name in the model."""

    name: str
    module: nn.Module
    layout: Layout

    @property
    def weight_shape(self) -> tuple[int, int]:
        """Outputs o and inputs i of the block matrix; a bias counts as one more input."""
        return self.layout.shape

    @property
    def parameters(self) -> int:
        """Number of parameters, o * i."""
        outputs, inputs = self.weight_shape
        return outputs * inputs

    @property
    def device(self) -> torch.device:
        """Where its parameters are, and with them all that is computed of it."""
        return next(self.module.parameters()).device


Blocks = tuple[Block, ...]
Shapes = Mapping[str, tuple[int, ...]]
"""Block name to the shape of one gradient, (o, i)."""
Selection = Callable[[Sequence[Block]], Blocks]


@dataclass(frozen=True)
class BlockSummary:
    """How much of a model its selected blocks cover.

    Attributes:
        names: the blocks, in model order.
        parameters: how many parameters they hold.
        share: the same as a share of all parameters of the model, in [0, 1].
        energy: share of the mean squared gradient norm of all blocks, in [0, 1]; None where it was not measured.
    """

    names: tuple[str, ...]
    parameters: int
    share: float
    energy: float | None = None


def hooked(blocks: Sequence[Block]) -> Blocks:
    """The modules whose calls the blocks are read from, each as a block under its block's name."""
    layouts = ((block, block.layout) for block in blocks)
    layers = [
        Block(block.name, layout.linear, OutputLayout(layout.module, layout.linear))
        for block, layout in layouts
        if isinstance(layout, TiedLayout)
    ]
    return (*blocks, *layers)


def shapes_of(blocks: Sequence[Block]) -> Shapes:
    """Of the blocks, in their order."""
    return {block.name: block.weight_shape for block in blocks}


def available(model: nn.Module) -> Blocks:
    """Every module with parameters of its own, in model order; the model's own parameters are the block `model`.

    Raises:
        UnknownBlock: there is none, or a child has that name, too.
    """
    layouts = ((name, module, layout_of(module)) for name, module in model.named_modules())
    blocks = tuple(Block(name or "model", module, layout) for name, module, layout in layouts if layout is not None)
    if not blocks:
        raise UnknownBlock("the model has no parameters, so it has no block")
    if [block.name for block in blocks].count("model") > 1:
        raise UnknownBlock("the model's own parameters and its child 'model' would be one block; rename the child")
    return blocks


def linear_blocks(model: nn.Module) -> Blocks:
    """Every linear layer of the model, in model order."""
    return by_type("Linear")(available(model))


def features(blocks: Sequence[Block]) -> Blocks:
    """Linear and convolutional layers: where nearly all parameters of most models are, and no table or scale.

    With GPT-2's `Conv1D`, which is linear, and without the output layer of `nn.MultiheadAttention`, whose weight is
    read there and never called.

    Raises:
        UnknownBlock: there is none.
    """
    kinds = nn.Linear | nn.Conv1d | nn.Conv2d
    found = tuple(
        block
        for block in blocks
        if (isinstance(block.module, kinds) or isinstance(block.layout, TransposedLayout))
        and not isinstance(block.module, NonDynamicallyQuantizableLinear)
    )
    if not found:
        raise UnknownBlock("the model has no linear or convolutional layer; choose blocks by type or name")
    return found


def trained(blocks: Sequence[Block]) -> Blocks:
    """Blocks with a parameter that is trained: of a model with LoRA its adapters, and the head where it has one.

    Raises:
        UnknownBlock: there is none.
    """
    found = tuple(block for block in blocks if any(one.requires_grad for one in block.module.parameters(recurse=False)))
    if not found:
        raise UnknownBlock(
            f"none of {', '.join(block.name for block in blocks)} is trained; choose blocks by type or name"
        )
    return found


def large_output(blocks: Sequence[Block]) -> Block | None:
    """The last linear layer in model order, if it has more rows than a covariance should have: a row for each word."""
    layers = [block for block in blocks if isinstance(block.module, nn.Linear)]
    return layers[-1] if layers and layers[-1].weight_shape[0] > LARGEST_FREE else None


def body(blocks: Sequence[Block]) -> Blocks:
    """The same as `features`, without a large output layer.

    Raises:
        UnknownBlock: there is nothing below it.
    """
    output = large_output(blocks)
    found = tuple(block for block in features(blocks) if block is not output)
    if not found:
        raise UnknownBlock("the model has no linear layer but a large output; choose blocks by type or name")
    return found


def by_name(*patterns: str) -> Selection:
    """Blocks whose names match one of the shell-style globs, e.g. `encoder.*.output`; case matters.

    Raises:
        UnknownBlock: when applied: a pattern matches nothing, or there is no pattern.
    """
    return _matching("pattern", patterns, lambda block, pattern: fnmatchcase(block.name, pattern), lambda b: b.name)


def by_type(*types: str) -> Selection:
    """Blocks whose module, or a base of it, is of one of the classes, named as in torch.nn: `Linear`, `LayerNorm`.

    Raises:
        UnknownBlock: when applied: a class matches nothing, or there is no class.
    """
    return _matching(
        "type", types, lambda b, name: any(kind.__name__ == name for kind in type(b.module).__mro__), _type_name
    )


def last(count: int) -> Selection:
    """The last blocks in model order.

    Raises:
        UnknownBlock: when applied: there are fewer.
    """

    def chosen(blocks: Sequence[Block]) -> Blocks:
        if not 1 <= count <= len(blocks):
            raise UnknownBlock(f"the last {count} blocks are asked for, the model has {len(blocks)} to choose from")
        return tuple(blocks[-count:])

    return chosen


def within(budget: int) -> Selection:
    """The last blocks that together hold at most `budget` parameters.

    Raises:
        UnknownBlock: when applied: the last block alone is larger.
    """

    def chosen(blocks: Sequence[Block]) -> Blocks:
        kept: list[Block] = []
        for block in reversed(blocks):
            if sum(one.parameters for one in kept) + block.parameters > budget:
                break
            kept.append(block)
        if not kept:
            raise UnknownBlock(
                f"a budget of {budget} parameters does not hold block {blocks[-1].name!r} with its "
                f"{blocks[-1].parameters}; raise the budget"
            )
        return tuple(reversed(kept))

    return chosen


def holding(share: float, energies: Mapping[str, float]) -> Selection:
    """Few parameters that hold a given share of the gradient energy of the blocks.

    Blocks enter by falling energy per parameter until the share is held; then, largest first, those leave without
    which it is held, too.

    Args:
        share: of the energy, in (0, 1].
        energies: mean squared gradient norm of every block, by name (`gradients.gradient_energy`).

    Raises:
        UnknownBlock: when applied: the energy of a block is not given, or no block has any.
    """
    if not 0 < share <= 1:
        raise InfluenceError(f"share {share} of the gradient energy: give a number in (0, 1]")

    def chosen(blocks: Sequence[Block]) -> Blocks:
        least = share * _energy(blocks, energies) * (1 - 1e-12)  # sums round
        kept: list[Block] = []
        for block in sorted(blocks, key=lambda one: energies[one.name] / one.parameters, reverse=True):
            if _energy(kept, energies) < least:
                kept.append(block)
        for block in sorted(kept, key=lambda one: one.parameters, reverse=True):
            without = [one for one in kept if one is not block]
            if _energy(without, energies) >= least:
                kept = without
        if not kept:
            raise UnknownBlock("no block has gradient energy: is every loss of the probe 0?")
        return tuple(block for block in blocks if block in kept)

    return chosen


def select(model: nn.Module, *selections: Selection) -> Blocks:
    """Apply selections one after the other to all blocks of a model.

    A table and a linear layer that share their weight are one block, whichever is selected, named like the first.

    Raises:
        UnknownBlock: a selection finds nothing.
        InfluenceError: a selected weight is shared in another way, or is too large for its gradients to be formed.
    """
    blocks = available(model)
    for selection in selections:
        blocks = selection(blocks)
    return _tied(model, blocks)


def head(model: nn.Module) -> Block:
    """The last linear layer in model order, which produces the logits.

    Raises:
        UnknownBlock: the model has no linear layer.
    """
    return linear_blocks(model)[-1]


def summarize(model: nn.Module, blocks: Iterable[Block], energies: Mapping[str, float] | None = None) -> BlockSummary:
    """Say which part of the model the blocks are; with the energies of all blocks, which part of those, if any, too."""
    chosen = tuple(blocks)
    parameters = sum(block.parameters for block in chosen)
    total = sum(parameter.numel() for parameter in model.parameters())
    energy = _energy(chosen, energies) / sum(energies.values()) if energies and any(energies.values()) else None
    return BlockSummary(tuple(block.name for block in chosen), parameters, parameters / total, energy)


def _energy(blocks: Sequence[Block], energies: Mapping[str, float]) -> float:
    for block in blocks:
        if block.name not in energies:
            raise UnknownBlock(f"the gradient energy of block {block.name!r} is not given; measure it on all blocks")
    return sum(energies[block.name] for block in blocks)


def _matching(
    what: str, wanted: Sequence[str], matches: Callable[[Block, str], bool], said: Callable[[Block], str]
) -> Selection:
    def chosen(blocks: Sequence[Block]) -> Blocks:
        known = ", ".join(dict.fromkeys(said(block) for block in blocks))
        if not wanted:
            raise UnknownBlock(f"no block {what} given; the model has {known}")
        for one in wanted:
            if not any(matches(block, one) for block in blocks):
                raise UnknownBlock(f"block {what} {one!r} matches nothing; the model has {known}")
        return tuple(block for block in blocks if any(matches(block, one) for one in wanted))

    return chosen


def _type_name(block: Block) -> str:
    return type(block.module).__name__


def _tied(model: nn.Module, blocks: Sequence[Block]) -> Blocks:
    """Put a table and the linear layer that shares its weight in one block."""
    owners: dict[Tensor, dict[str, nn.Module]] = {}
    for path, module in model.named_modules():  # each once: a module used in two places is called twice, not tied
        for name, parameter in module.named_parameters(path, recurse=False):
            owners.setdefault(parameter, {})[name] = module
    found: dict[str, Block] = {}
    for block in blocks:
        shared = [owners[one] for one in block.module.parameters(recurse=False) if len(owners[one]) > 1]
        whole = _of_both(model, block, shared[0]) if shared else block
        found.setdefault(whole.name, whole)
    return tuple(found.values())


def _of_both(model: nn.Module, block: Block, owners: Mapping[str, nn.Module]) -> Block:
    """The block of a shared weight, under the name of its first owner in the model."""
    both = f"block {block.name!r} shares a weight ({', '.join(owners)})"
    tables = [one for one in owners.values() if isinstance(layout_of(one), EmbeddingLayout)]
    layers = [one for one in owners.values() if isinstance(layout_of(one), LinearLayout)]
    if len(owners) > 2 or not tables or not layers or layers[0].bias is not None:
        raise InfluenceError(f"{both}, and only a table and a linear layer without bias may; select other blocks")
    layout = TiedLayout(cast(nn.Embedding, tables[0]), cast(nn.Linear, layers[0]))
    if layout.shape[0] > LARGEST_FREE:
        raise InfluenceError(
            f"{both} of {layout.shape[0]} rows: at most {LARGEST_FREE} are supported; select others, as "
            f"{_others(model, owners)}"
        )
    return Block(next(iter(owners)).rpartition(".")[0], tables[0], layout)


def _others(model: nn.Module, owners: Iterable[str]) -> str:
    """Patterns that name the layers below a large output and not the shared weight, as a list in TOML or Python."""
    names = [block.name for block in body(available(model))]
    steps = zip(*(name.split(".")[:-1] for name in names))
    below = "".join(f"{step[0]}." for step in takewhile(lambda step: len(set(step)) == 1, steps))
    apart = below and not any(name.startswith(below) for name in owners)
    return "[" + ", ".join(f'"{name}"' for name in ([f"{below}*"] if apart else names)) + "]"
