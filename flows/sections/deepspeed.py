"""The key `training.deepspeed`: whatever DeepSpeed knows and Tamis has no key for, inline or in a JSON file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

OPTIMIZER = "training.learning_rate and training.weight_decay: the optimizer is AdamW"
OWNED = {
    "train_batch_size": "training.batch_size",
    "train_micro_batch_size_per_gpu": "training.batch_size, training.ranks and training.accumulation",
    "gradient_accumulation_steps": "training.accumulation",
    "gradient_clipping": "training.clipping",
    "optimizer": OPTIMIZER,
    "zero_allow_untested_optimizer": OPTIMIZER,
    "zero_force_ds_cpu_optimizer": OPTIMIZER,
    "scheduler": "training.schedule and training.warmup",
    "bf16": "training.precision",
    "fp16": "training.precision",
    "torch_autocast": "training.precision",
    "data_types": "training.precision",
    "activation_checkpointing": "training.activation_checkpointing",
    "checkpoint": "training.resume_every",
    "zero_optimization.stage": "training.zero_stage",
    "zero_optimization.offload_optimizer": "training.offload",
}


def read(file: Path) -> Any:
    """What a JSON file holds.

    Raises:
        ValueError: It is missing or not JSON.
    """
    if not file.is_file():
        raise ValueError(f"{file}: no such file; give a table, or a JSON file beside the TOML")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: not JSON: {error}") from error


def refuse_owned(settings: Mapping[str, Any]) -> None:
    """Refuse what has a key of its own.

    Raises:
        ValueError: Names the key to give instead.
    """
    for table in ("zero_optimization",):
        if not isinstance(settings.get(table, {}), Mapping):
            raise ValueError(f"{table} = {settings[table]!r} is not a table")
    for key in _keys(settings):
        if key in OWNED:
            raise ValueError(f"{key} is not for DeepSpeed's settings; give {OWNED[key]}")


def merged(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Both, tables within tables too; where both have a value, theirs counts."""
    both = [key for key in ours.keys() & theirs.keys() if isinstance(ours[key], Mapping)]
    return {**ours, **theirs, **{key: merged(ours[key], theirs[key]) for key in both}}


def _keys(settings: Mapping[str, Any]) -> Iterator[str]:
    for key, value in settings.items():
        yield key
        if isinstance(value, Mapping):
            yield from (f"{key}.{inner}" for inner in value)
