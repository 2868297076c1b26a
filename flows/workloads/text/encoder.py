"""Encoders with a head: how they are made of a folder, and what they say of a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from flows.errors import BadInput
from flows.workloads.text.layers import base_of
from flows.workloads.text.library import faults, load_model

Head: TypeAlias = Literal["model", "mean"]


class MeanClassifier(nn.Module):
    """An encoder, the mean of its last hidden states over the tokens, and a linear layer.

    Args:
        encoder: One of transformers' models.
        classes: C.
    """

    base_model_prefix = "encoder"  # as transformers' models say it

    def __init__(self, encoder: Any, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.config.hidden_size, classes)

    def forward(self, **given: Tensor) -> Tensor:
        """Logits `[B, C]` of `attention_mask` and `input_ids` or `inputs_embeds`."""
        logits: Tensor = self.head(mean_of(self.encoder(**given).last_hidden_state, given["attention_mask"]))
        return logits


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


def logits_of(model: nn.Module, **given: Any) -> Tensor:
    """Logits `[B, C]` of either kind of head, `[B, T, V]` of a language model."""
    found = model(**given)
    logits: Tensor = found if isinstance(found, Tensor) else found.logits
    return logits


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
