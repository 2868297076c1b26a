"""Section `retention`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from flows.sections.base import Section


class RetentionConfig(Section):
    """What of older cycles leaves the disk at the end of a cycle, and with `tamis gc`."""

    cycles: Annotated[int, Field(ge=0)] = 0
    """So many of the newest keep scores, logs and plans; of older ones the scores that a removal rests on stay."""

    @field_validator("cycles")
    @classmethod
    def _compared(cls, cycles: int) -> int:
        if cycles == 1:
            raise ValueError("a cycle reads the scores of the one before: give at least 2, or 0 to keep all")
        return cycles
