"""Section `launch`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from flows.sections.base import Section


class LaunchConfig(Section):
    """How ranks are watched."""

    heartbeat_seconds: Annotated[float, Field(gt=0)] = 300.0
    """A rank that shows no progress for this long is ended, and the stage fails."""
    oversubscribe: bool = False
    """More ranks than this machine has cores, which then share them: slower, and not wrong."""
