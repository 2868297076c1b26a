"""Encoders with a head, whole or without their lowest layers, whose work is done once (`frozen`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from flows.errors import BadInput
from flows.workloads.text.library import faults, load_model

Head: TypeAlias = Literal["model", "mean"]


class MeanClassifier(nn.Module):
    """An encoder, the mean of its last hidden states over the tokens, and a linear layer.

    Args:
        encoder: One of transformers' models.
        classes: C.
    """

    def __init__(self, encoder: Any, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.config.hidden_size, classes)

    def forward(self, **given: Tensor) -> Tensor:
        """Logits `[B, C]` of `attention_mask` and `input_ids` or `inputs_embeds`."""
        logits: Tensor = self.head(mean_of(self.encoder(**given).last_hidden_state, given["attention_mask"]))
        return logits


class Skipped(nn.Module):
    """In the place of a layer whose work was done before."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        """What it is given."""
        return hidden_states


class Entered(nn.Module):
    """In the place of the embeddings: hidden states come in from outside."""

    def forward(self, *given: Any, **named: Any) -> Tensor:
        """The hidden states among what embeddings are given."""
        values = (*given, *named.values())
        return next(value for value in values if isinstance(value, Tensor) and value.is_floating_point())


def mean_of(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens `[B, H]` of hidden states `[B, T, H]`."""
    weights = mask[..., None].to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1)


def build(folder: Path, head: Head, classes: int, padding: int) -> nn.Module:
    """A classifier of a folder's weights; what they lack is drawn from torch's global seed.

    Raises:
        BadInput: They are of no such model, or of one with another number of classes.
    """
    if head == "mean":
        encoder = _reading(load_model("AutoModel", folder))
        if getattr(encoder, "pooler", None) is not None:
            encoder.pooler = None  # BERT's, which the mean has no use for
        return MeanClassifier(encoder, classes).train()
    remedy = f"name all labels of its head by labels = [...], not {classes}, or leave it aside by head = 'mean'"
    model = load_model("AutoModelForSequenceClassification", folder, remedy, num_labels=classes)
    model.config.pad_token_id = padding
    found: nn.Module = model.train()
    return found


def logits_of(model: nn.Module, **given: Tensor) -> Tensor:
    """Logits `[B, C]` of either kind of head."""
    found = model(**given)
    logits: Tensor = found if isinstance(found, Tensor) else found.logits
    return logits


def base_of(model: nn.Module) -> Any:
    """The model below the head."""
    return model.encoder if isinstance(model, MeanClassifier) else getattr(model, str(model.base_model_prefix))


def head_of(model: nn.Module) -> list[str]:
    """Names of the modules beside the base that have parameters."""
    base = base_of(model)
    return [name for name, one in model.named_children() if one is not base and any(True for _ in one.parameters())]


def hidden_of(model: nn.Module, given: dict[str, Tensor]) -> Tensor:
    """What a classifier's encoder makes of texts: its last hidden states `[B, T, H]`.

    Raises:
        BadInput: It makes none.
    """
    encoder = model.encoder if isinstance(model, MeanClassifier) else _reading(base_of(model))
    try:
        with torch.no_grad():
            hidden: Tensor = encoder(**given).last_hidden_state
    except faults() as error:  # as its code has it
        raise BadInput(
            f"{type(model).__name__} gives no hidden states of a text, which neighbours and out-of-fold models need "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]}): take another model"
        ) from error
    return hidden


def _reading(base: Any) -> Any:
    """Of a model that reads and writes, the part that reads."""
    return base.get_encoder() if base.config.is_encoder_decoder else base


def layers_of(model: nn.Module) -> nn.ModuleList:
    """The layers of its encoder, lowest first.

    Raises:
        BadInput: They are not one list.
    """
    base = base_of(model)
    count = base.config.num_hidden_layers
    lists = [
        module
        for module in base.modules()
        if isinstance(module, nn.ModuleList) and len(module) == count and len({type(one) for one in module}) == 1
    ]
    if len(lists) != 1 or not isinstance(getattr(base, "embeddings", None), nn.Module):
        raise BadInput(
            f"train_layers: the layers of {type(base).__name__} cannot be told apart from its embeddings; leave the "
            "option out to train all of it"
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


def cut(model: nn.Module, frozen: int) -> nn.Module:
    """Leave the embeddings and the lowest layers out of a model, in place; the others keep their names."""
    layers = layers_of(model)
    for index in range(frozen):
        layers[index] = Skipped()
    base_of(model).embeddings = Entered()
    return model


def entering(model: nn.Module, frozen: int, given: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Run the encoder: hidden states as they enter the first trained layer, and as they leave the last `[B, T, H]`."""
    caught: list[Tensor] = []
    place = layers_of(model)[frozen - 1] if frozen else base_of(model).embeddings
    hook = place.register_forward_hook(lambda module, arguments, output: caught.append(output))
    try:
        with torch.no_grad():
            last: Tensor = base_of(model)(**given).last_hidden_state
    finally:
        hook.remove()
    return caught[0], last
