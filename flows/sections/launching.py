"""Section `launch`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from flows.sections.base import Count, Section


class LaunchConfig(Section):
    """How ranks are watched, and what happens when they fail."""

    heartbeat_seconds: Annotated[float, Field(gt=0)] = 300.0
    """A rank that shows no progress for this long is ended, and with it the attempt."""
    attempts: Count = 2
    """How often ranks that were killed, hung or threw are started in all; what is finished is not done again."""
