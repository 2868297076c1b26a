"""Where the class of a workload is found."""

from __future__ import annotations

import importlib
import importlib.util
import os
import site
import sys
from pathlib import Path
from types import ModuleType

from flows.errors import BadInput


def module_of(where: str, root: Path) -> ModuleType:
    """Import a workload's module.

    Args:
        where: `file.py` beside the TOML, or the name of a module.
        root: The TOML's folder.

    Raises:
        BadInput: There is none, or another start would import another one.
    """
    if str(root) not in sys.path:
        sys.path.append(str(root))  # last, so that a user's folder never hides an installed package
    try:
        if where.endswith(".py"):
            return _file(root / where)
        _check_home(where, root)
        return importlib.import_module(where)
    except ModuleNotFoundError as error:
        raise BadInput(f"workload.class = {where!r}: {error}, neither beside the TOML nor installed") from error


def _check_home(where: str, root: Path) -> None:
    """Refuse a package that only the current folder or PYTHONPATH offers: another start would run other code."""
    name = where.split(".")[0]
    accidental = {Path(entry or ".").resolve() for entry in ("", *os.environ.get("PYTHONPATH", "").split(os.pathsep))}
    accidental -= {root.resolve(), Path(__file__).resolve().parents[1], *_installed()}
    found = _places(name, sys.path)
    if found != _places(name, [entry for entry in sys.path if Path(entry or ".").resolve() not in accidental]):
        raise BadInput(
            f"workload.class = {where!r}: {found[0]} is found through the current folder or PYTHONPATH alone; put it "
            "beside the TOML, install it, or name the file: 'path/to/file.py:Class'"
        )


def _installed() -> set[Path]:
    """Folders that every start looks in: those of packages, and of editable installs, which `.pth` files name."""
    homes = {Path(home).resolve() for home in (*site.getsitepackages(), site.getusersitepackages())}
    named = {
        (home / line).resolve()
        for home in homes
        for file in home.glob("*.pth")
        for line in map(str.strip, file.read_text(encoding="utf-8", errors="replace").splitlines())
        if line and not line.startswith(("#", "import "))
    }
    return homes | named


def _places(name: str, path: list[str]) -> list[Path]:
    """Where a search path, or a finder of an editable install, has a package; asked anew, were it imported already."""
    before = sys.path[:]
    sys.path[:] = path
    try:
        specs = (finder.find_spec(name, None) for finder in sys.meta_path)
        spec = next((spec for spec in specs if spec is not None), None)
        places = [] if spec is None else list(spec.submodule_search_locations or [spec.origin or ""])
    finally:
        sys.path[:] = before
    return [Path(place).resolve() for place in places]


def _file(path: Path) -> ModuleType:
    if not path.is_file():
        raise BadInput(f"workload.class: {path}: no such file")
    spec = importlib.util.spec_from_file_location(f"tamis_workload_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise BadInput(f"workload.class: {path}: Python cannot load it")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
