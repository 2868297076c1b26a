"""Where an option's file or model is: beside the TOML, inside an installed package, or on the Hugging Face hub."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

from flows.errors import BadInput
from flows.workloads.text.library import library

PACKAGE = "package:"
WANTED = ["*.json", "*.txt", "*.model", "*.safetensors"]
"""Of a repository on the hub: configuration, tokenizer and weights, and nothing that runs."""
ADAPTER = "adapter_config.json"
"""That peft writes; transformers would follow it to another model, and say nothing."""


def file_of(given: str, folder: Path) -> Path:
    """A file beside the TOML, or `package:NAME/path/in/it`.

    Raises:
        BadInput: There is no such package.
    """
    return _in_package(given) if given.startswith(PACKAGE) else folder / given


def model_folder(given: str, folder: Path) -> Path:
    """The folder of a model: beside the TOML, `package:NAME/path/in/it`, or a name on the hub.

    Raises:
        BadInput: There is none, or it lacks what a model is made of.
    """
    found = file_of(given, folder)
    if not found.is_dir():
        if _is_path(given):
            raise BadInput(f"model = {given!r}: {found} is no folder: give one that save_pretrained wrote")
        found = _from_hub("model", given, folder)
    if (found / ADAPTER).is_file():
        base = json.loads((found / ADAPTER).read_text()).get("base_model_name_or_path")
        raise BadInput(
            f"model = {given!r}: {found} holds an adapter ({ADAPTER}), no model: give its base ({base}) and the option "
            "lora to train a new one, or merge it (merge_and_unload) and give what save_pretrained then writes"
        )
    if not (found / "config.json").is_file():
        raise BadInput(f"model = {given!r}: {found} has no config.json: give a folder that save_pretrained wrote")
    if not any(found.glob("*.safetensors")):
        raise BadInput(f"model = {given!r}: {found} has no weights in *.safetensors: save them by save_pretrained")
    return found


def tokenizer_place(given: str, folder: Path) -> Path:
    """A tokenizer's folder or tokenizer.json: beside the TOML, `package:NAME/path/in/it`, or of a name on the hub.

    Raises:
        BadInput: There is none.
    """
    found = file_of(given, folder)
    if not found.exists() and not _is_path(given) and found.suffix != ".json":
        return _from_hub("tokenizer", given, folder)
    if not found.exists():
        raise BadInput(f"tokenizer = {given!r}: {found}: no such file or folder")
    return found


def _is_path(given: str) -> bool:
    """Whether it can be no name on the hub."""
    return given.startswith((PACKAGE, ".", "/", "~")) or given.count("/") > 1


def _in_package(given: str) -> Path:
    name, _, inner = given.removeprefix(PACKAGE).partition("/")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None  # of a top-level name: imports nothing
    if spec is None or not spec.submodule_search_locations:
        raise BadInput(f"{given!r}: no package {name!r} is installed here: install it, or give a path")
    homes = [Path(home) for home in spec.submodule_search_locations]
    found = next((home / inner for home in homes if (home / inner).exists()), None)
    if found is None:
        raise BadInput(f"{given!r}: package {name} holds no {inner} (looked in {', '.join(map(str, homes))})")
    return found


def _from_hub(option: str, given: str, folder: Path) -> Path:
    """The copy that is kept here, or a new one; HF_HUB_OFFLINE and HF_HOME mean what they always mean."""
    hub, errors = library("huggingface_hub"), library("huggingface_hub.errors")
    try:
        return Path(hub.snapshot_download(given, allow_patterns=WANTED, local_files_only=True))
    except errors.HFValidationError as error:
        raise BadInput(f"{option} = {given!r}: neither a folder in {folder} nor a name on the hub") from error
    except errors.LocalEntryNotFoundError:
        pass  # not here yet
    try:
        return Path(hub.snapshot_download(given, allow_patterns=WANTED))
    except OSError as error:
        raise BadInput(
            f"{option} = {given!r}: neither a folder in {folder}, nor kept here, nor to be had from the hub "
            f"({type(error).__name__}): download it once, or give a folder"
        ) from error
