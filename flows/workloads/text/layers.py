"""Models of transformers without their lowest layers, whose work is done once (`frozen`).

Hidden states come in where token embeddings would. What else stands before the layers then adds nothing: embeddings
are one module that is left out (BERT and its kind), or tables, of words and of places, and a dropout (decoders).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flows.errors import BadInput


class Skipped(nn.Module):
    """In the place of a layer whose work was done before, or is not asked for."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        """What it is given."""
        return hidden_states


class Entered(nn.Module):
    """In the place of the embeddings: hidden states come in from outside."""

    def forward(self, *given: Any, **named: Any) -> Tensor:
        """The hidden states among what embeddings are given."""
        values = (*given, *named.values())
        return next(value for value in values if isinstance(value, Tensor) and value.is_floating_point())


class Added(nn.Module):
    """In the place of a table: the hidden states that come in have had its rows added."""

    def forward(self, rows: Tensor, *_: Any, **__: Any) -> Tensor:
        """Nothing more."""
        return torch.zeros((), device=rows.device)


def base_of(model: nn.Module) -> Any:
    """The model below the head."""
    return getattr(model, str(model.base_model_prefix))


def layers_of(model: nn.Module) -> nn.ModuleList:
    """The layers below the head, lowest first.

    Raises:
        BadInput: They are not one list.
    """
    base = base_of(model)
    count = base.config.num_hidden_layers
    lists = [
        module
        for module in base.modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == count
        and len({type(one) for one in module} - {Skipped}) <= 1
    ]
    if len(lists) != 1:
        raise BadInput(
            f"train_layers: the layers of {type(base).__name__} are not one list; leave the option out to train all "
            "of it"
        )
    return lists[0]


def frozen_layers(model: nn.Module, trained: int) -> int:
    """How many of its layers are below the trained ones.

    Raises:
        BadInput: It has fewer than are to be trained.
    """
    count = len(layers_of(model))
    if not 0 <= trained <= count:
        raise BadInput(f"train_layers = {trained}: {type(base_of(model)).__name__} has {count} layers")
    return count - trained


def upper_of(model: nn.Module, trained: int) -> tuple[nn.Module, range]:
    """A model cut in place, and the numbers of the layers that are left.

    Raises:
        BadInput: It has fewer than are to be trained.
    """
    frozen = frozen_layers(model, trained)
    return cut(model, frozen), range(frozen, frozen + trained)


def cut(model: nn.Module, frozen: int) -> nn.Module:
    """Leave the embeddings and the lowest layers out of a model, in place; the others keep their names."""
    base, layers = base_of(model), layers_of(model)
    inside = set(layers.modules())
    skip(layers, range(frozen))
    if isinstance(getattr(base, "embeddings", None), nn.Module):
        _freeze(base.embeddings)
        base.embeddings = Entered()
        return model
    for name, module in list(base.named_modules()):
        if isinstance(module, nn.Embedding) and module not in inside:
            _freeze(module)
            base.set_submodule(name, Added())
        elif isinstance(module, nn.Dropout) and module not in inside:
            base.set_submodule(name, nn.Identity())
    return model


def _freeze(embeddings: nn.Module) -> None:
    """Of a language model they may be the output layer's weight, too: with what is kept, that stays as it was."""
    embeddings.requires_grad_(False)


def skip(layers: nn.ModuleList, numbers: range) -> None:
    """Leave some layers out, in place."""
    for number in numbers:
        layers[number] = Skipped()


def entering(model: nn.Module, frozen: int, given: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Run the base: hidden states as they enter the first trained layer, and as they come out `[B, T, H]`."""
    caught: list[Tensor] = []
    layers = layers_of(model)
    if frozen:
        hook = layers[frozen - 1].register_forward_hook(lambda module, arguments, output: caught.append(output))
    else:
        hook = layers[0].register_forward_pre_hook(lambda module, arguments: caught.append(arguments[0]))
    try:
        with torch.no_grad():
            last: Tensor = base_of(model)(**given).last_hidden_state
    finally:
        hook.remove()
    return caught[0], last
