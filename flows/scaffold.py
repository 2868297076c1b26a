"""`tamis init`: a commented tamis.toml and a workload.py that run as they are."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from flows.errors import BadInput
from storage.files import atomic_write_text


def write_scaffold(folder: Path) -> tuple[Path, ...]:
    """Write the two files into a folder.

    Raises:
        BadInput: One of them is there already, or the folder cannot be written.
    """
    templates = files("flows") / "templates"
    names = {"tamis.toml": "tamis.toml", "workload.py": "workload.py.txt"}
    if there := [name for name in names if (folder / name).exists()]:
        raise BadInput(f"{folder}: {', '.join(there)} exists already; give another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{folder}: cannot be written ({error.strerror}); give another folder") from error
    for name, template in names.items():
        atomic_write_text(folder / name, (templates / template).read_text(encoding="utf-8"))
    return tuple(folder / name for name in names)
