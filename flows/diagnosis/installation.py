"""Python and the packages, against what Tamis asks for."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, metadata, requires

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from flows.config import Config
from flows.errors import BadInput
from flows.installed import version_of

NAMED = ("tamis", "torch", "deepspeed", "prefect", "fastapi", "mlflow", "duckdb")


def versions(config: Config) -> str:
    """Releases outside the ranges are not known to work: Prefect 3.8, e.g., cannot run a flow beside fastapi 0.151."""
    asked = [one for text in requires("tamis") or () if (one := Requirement(text)).marker is None]  # extras have one
    wrong = [fault for one in asked if (fault := _fault(one))]
    python = metadata("tamis")["Requires-Python"]
    if not SpecifierSet(python).contains(platform.python_version(), prereleases=True):
        wrong.append(f"Python {platform.python_version()}, Tamis asks for {python}: make an environment of such a one")
    if wrong:
        raise BadInput("; ".join(wrong))
    here = ", ".join(f"{name} {version_of(name)}" for name in NAMED)
    return f"Python {platform.python_version()}, {here}; all {len(asked)} packages are within what Tamis asks for"


def _fault(asked: Requirement) -> str:
    try:
        found = version_of(asked.name)
    except PackageNotFoundError:
        return f"{asked.name} is not installed: pip install '{asked}'"
    if asked.specifier.contains(found, prereleases=True):
        return ""
    return f"{asked.name} {found}, Tamis asks for {asked.specifier}: pip install '{asked}'"
