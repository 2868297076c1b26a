"""Hugging Face's libraries: imported when they are needed and no sooner, quiet, and offline where a folder will do."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from flows.errors import BadInput

FAULTS = (ValueError, TypeError, KeyError, AttributeError, RuntimeError, ArithmeticError, AssertionError, OSError)
"""Of transformers where a configuration or a folder is not right, besides those of huggingface_hub."""
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
"""Files one of which a tokenizer has; without any, transformers makes an empty one and does not say so."""


def library(name: str = "transformers") -> Any:
    """One of the libraries of the extra `hf`.

    Raises:
        BadInput: It is not installed.
    """
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise BadInput(f"this workload needs {name}: pip install 'tamis[hf]'") from error
    if name == "transformers":
        module.utils.logging.set_verbosity_error()
        module.utils.logging.disable_progress_bar()
    return module


def faults() -> tuple[type[Exception], ...]:
    """What transformers raises where a configuration or a folder is not right."""
    strict = getattr(library("huggingface_hub.errors"), "StrictDataclassError", None)  # older ones check no field
    return FAULTS if strict is None else (*FAULTS, strict)


def tokenizer_files(folder: Path) -> list[Path]:
    """What a tokenizer is read from, for a digest.

    Raises:
        BadInput: The folder has no tokenizer.
    """
    if not any(any(folder.glob(pattern)) for pattern in VOCABULARIES):
        raise BadInput(f"{folder} has no tokenizer (no {', '.join(VOCABULARIES)}): save it there by save_pretrained")
    wanted = ("*token*.json", *VOCABULARIES, "merges.txt")
    return sorted({file for pattern in wanted for file in folder.glob(pattern)})


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder that has one.

    Raises:
        BadInput: It cannot be read, or cannot pad.
    """
    try:
        tokenizer = library().AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise BadInput(f"{folder}: its tokenizer cannot be read: {_line(error)}") from error
    if tokenizer.pad_token_id is None:
        raise BadInput(
            f"{folder}: its tokenizer has no padding token: set one (tokenizer.pad_token = tokenizer.eos_token) and "
            "save it"
        )
    return tokenizer


def load_config(folder: Path) -> Any:
    """The configuration of a model's folder.

    Raises:
        BadInput: It cannot be read.
    """
    try:
        return library().AutoConfig.from_pretrained(folder, local_files_only=True)
    except faults() as error:
        raise BadInput(f"{folder}: its config.json cannot be read: {_line(error)}") from error


def most_tokens(folder: Path) -> int | None:
    """How long a text may be that a folder's model takes; None where its configuration does not say.

    Raises:
        BadInput: Its configuration is of no model.
    """
    import torch

    config, name = load_config(folder), "max_position_embeddings"
    said = config.to_dict().get(config.attribute_map.get(name, name))  # GPT-2's is n_positions
    if not isinstance(said, int):
        return None
    try:
        with torch.device("meta"):  # no weights
            modules = dict(library().AutoModel.from_config(config).named_modules())
    except faults() as error:
        raise BadInput(f"{folder}: its config.json is of no model: {_line(error)}") from error
    tables = [one for name, one in modules.items() if "position" in name and isinstance(one, torch.nn.Embedding)]
    padding = [one.padding_idx for one in tables if one.padding_idx is not None]
    return said - 1 - max(padding, default=-1)  # RoBERTa counts the places of a text from behind that of padding


def load_model(kind: str, folder: Path, remedy: str = "save it anew", **settings: Any) -> Any:
    """A model of a folder, newly initialised where its file holds nothing; by one of transformers' Auto classes.

    Args:
        kind: The class.
        folder: That save_pretrained wrote.
        remedy: What to do where the weights are of another shape.
        settings: Of the model.

    Raises:
        BadInput: Its files are damaged, or of no such model.
    """
    transformers = library()
    try:
        # eager: the probe takes forward derivatives, which torch's fused attention has none of
        # float32: a folder is otherwise loaded as it was saved, and scores in bfloat16 are noise
        how = {"attn_implementation": "eager", "dtype": library("torch").float32, **settings}
        how |= {"local_files_only": True, "use_safetensors": True}
        model, found = getattr(transformers, kind).from_pretrained(
            folder, ignore_mismatched_sizes=True, output_loading_info=True, **how
        )
    except (OSError, ValueError, RuntimeError, library("safetensors").SafetensorError) as error:
        raise BadInput(f"{folder}: no {kind} can be made of it: {_line(error)}") from error
    if found["mismatched_keys"]:
        name, saved, wanted = min(found["mismatched_keys"])
        raise BadInput(f"{folder}: {name} is {list(saved)} in its file, and should be {list(wanted)}: {remedy}")
    return model


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
