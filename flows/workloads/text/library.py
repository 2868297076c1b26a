"""Hugging Face's libraries: imported when they are needed and no sooner, quiet, and offline where a folder will do."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from flows.errors import BadInput

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


def load_model(kind: str, folder: Path, **settings: Any) -> Any:
    """A model of a folder, newly initialised where its file holds nothing; by one of transformers' Auto classes.

    Raises:
        BadInput: Its files are damaged, or of no model of that kind.
    """
    transformers = library()
    try:
        # eager: the probe takes forward derivatives, which torch's fused attention has none of
        # float32: a folder is otherwise loaded as it was saved, and scores in bfloat16 are noise
        how = {"attn_implementation": "eager", "dtype": library("torch").float32, **settings}
        return getattr(transformers, kind).from_pretrained(folder, local_files_only=True, use_safetensors=True, **how)
    except (OSError, ValueError, RuntimeError, library("safetensors").SafetensorError) as error:
        raise BadInput(f"{folder}: no {kind} can be made of it: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
