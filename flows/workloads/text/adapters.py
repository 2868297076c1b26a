"""LoRA by peft: weights that stay as they are, and beside some of the layers small matrices that are trained."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field, ValidationError
from torch import nn

from flows.errors import BadInput
from flows.sections.base import Count, Section
from flows.workloads.text.library import library

OPTION = "workload.options.lora"
NAMED = 12
"""Layers that a message names, at most."""


class Lora(Section):
    """What peft's LoraConfig is made of, under its names."""

    r: Count = 8
    lora_alpha: Count = 8
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: list[str] = Field(default_factory=list)
    """Names of linear layers, or how they end; default: those that peft adapts in a model of this type."""


def lora_of(given: Mapping[str, Any] | None) -> Lora | None:
    """The option `lora`, where there is one.

    Raises:
        BadInput: A key or value is not right, or peft is not installed.
    """
    if given is None:
        return None
    try:
        found = Lora.model_validate(given)
    except ValidationError as error:
        raise BadInput("; ".join(map(_explained, error.errors()))) from error
    library("peft")  # before anything is read
    return found


def adapted(
    model: nn.Module,
    lora: Lora,
    kind: str,
    task: str | None = None,
    head: Sequence[str] = (),
    layers: Sequence[int] | None = None,
) -> nn.Module:
    """A model of peft around a model, which is changed in place: adapters and head are all that is trained.

    Args:
        model: What is adapted.
        lora: How.
        kind: Of the model: its `model_type`.
        task: What peft calls it.
        head: Names of modules that are trained whole.
        layers: Numbers of those that are adapted; default: all.

    Raises:
        BadInput: A target is no linear layer of the model, or there are none by default.
    """
    peft, linear = library("peft"), dict(_linear(model, head))
    chosen = _targets(lora, kind, linear)
    found = [layer for name, layer in linear.items() if any(_named(name, one) for one in chosen)]
    config = peft.LoraConfig(
        **lora.model_dump(exclude={"target_modules"}),
        target_modules=chosen,
        modules_to_save=list(head) or None,
        layers_to_transform=None if layers is None else list(layers),
        fan_in_fan_out=not any(isinstance(layer, nn.Linear) for layer in found),  # Conv1D's weight is the other way
        task_type=task,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # at what peft asks of transformers
        made: nn.Module = peft.get_peft_model(model, config)
    return made


def _linear(model: nn.Module, head: Sequence[str]) -> Iterator[tuple[str, nn.Module]]:
    """The layers that can be adapted."""
    conv1d = library("transformers.pytorch_utils").Conv1D
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | conv1d) and name.partition(".")[0] not in head:
            yield name, module


def _targets(lora: Lora, kind: str, linear: Mapping[str, nn.Module]) -> list[str]:
    known = library("peft.utils.constants").TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(kind)
    names = list(dict.fromkeys(name.rpartition(".")[2] for name in linear))
    said = f"there are {', '.join(names[:NAMED])}{', …' * (len(names) > NAMED)}" if names else "there is none"
    if not lora.target_modules and not isinstance(known, list):
        raise BadInput(f"{OPTION}: peft does not say which layers of a {kind} to adapt: give target_modules; {said}")
    chosen: list[str] = lora.target_modules or known
    for one in chosen:
        if not any(_named(name, one) for name in linear):
            raise BadInput(f"{OPTION}.target_modules: {one!r} names no linear layer below the head; {said}")
    return chosen


def _named(name: str, target: str) -> bool:
    """As peft takes it."""
    return name == target or name.endswith(f".{target}")


def _explained(item: Any) -> str:
    key = ".".join((OPTION, *map(str, item["loc"])))
    if item["type"] == "extra_forbidden":
        return f"{key}: unknown key (allowed: {', '.join(Lora.model_fields)})"
    return f"{key} = {item['input']!r}: {item['msg']}"
