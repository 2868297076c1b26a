"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

TOML = Annotated[Path, typer.Argument(help="The settings.")]
TOML_OPTION = Annotated[Path, typer.Option("--file", "-f", help="The settings.")]
JSON_OPTION = Annotated[bool, typer.Option("--json", help="Write JSON.")]
BY = Annotated[str, typer.Option("--by", help="Who decides.")]
HERE = Path("tamis.toml")
