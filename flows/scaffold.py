"""`tamis init`: a commented tamis.toml and a workload.py that run as they are, or the two of a built-in workload."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from flows.errors import BadInput
from storage.files import atomic_write_text

SCAFFOLDS: Mapping[str, Mapping[str, str]] = {
    "": {"tamis.toml": "tamis.toml", "workload.py": "workload.py.txt"},
    "causal_lm": {"tamis.toml": "causal_lm.toml", "texts.jsonl": "causal_lm.jsonl"},
}
"""Names of the files and of their templates, by workload; empty: a class of the user's own."""


def write_scaffold(folder: Path, workload: str = "") -> tuple[Path, ...]:
    """Write the two files into a folder.

    Raises:
        BadInput: One of them is there already, the folder cannot be written, or the workload has no files.
    """
    templates = files("flows") / "templates"
    names = SCAFFOLDS.get(workload)
    if names is None:
        raise BadInput(f"--workload {workload}: give {', '.join(filter(None, SCAFFOLDS))}, or leave it out")
    if there := [name for name in names if (folder / name).exists()]:
        raise BadInput(f"{folder}: {', '.join(there)} exists already; give another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{folder}: cannot be written ({error.strerror}); give another folder") from error
    for name, template in names.items():
        atomic_write_text(folder / name, (templates / template).read_text(encoding="utf-8"))
    return tuple(folder / name for name in names)
