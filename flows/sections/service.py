"""Section `service`: when `tamis serve` starts a cycle, what becomes of one that comes late, and who is told."""

from __future__ import annotations

from typing import Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, field_validator, model_validator

from flows.sections.base import Section


class ServiceConfig(Section):
    """How `tamis serve` runs the cycles of this file."""

    cron: str | None = None
    """When a cycle is due: minute, hour, day, month, weekday."""
    every_hours: Annotated[float, Field(gt=0)] | None = None
    """Or how often. Neither: only `tamis trigger`, an event or Prefect's UI starts one."""
    timezone: str = "UTC"
    """Of the schedule, e.g. Europe/Lisbon."""
    late: Literal["run_once", "skip"] = "run_once"
    """What becomes of due cycles that could not begin in time: the newest of them is run, or none."""
    late_minutes: Annotated[float, Field(ge=0)] = 60.0
    """In time is within so many minutes."""
    poll_seconds: Annotated[float, Field(gt=0)] = 10.0
    """How often the service looks for due cycles and for decisions on an open proposal."""
    notify: tuple[str, ...] = ()
    """Prefect notification blocks, e.g. "slack-webhook/curation", told of what waits, is promoted or fails."""

    @field_validator("cron")
    @classmethod
    def _five_fields(cls, cron: str | None) -> str | None:
        if cron is not None and len(cron.split()) != 5:
            raise ValueError("give five fields: minute, hour, day, month, weekday, e.g. '0 3 * * *'")
        return cron

    @field_validator("timezone")
    @classmethod
    def _known(cls, timezone: str) -> str:
        try:
            ZoneInfo(timezone)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise ValueError("no such time zone; give a name such as UTC or Europe/Lisbon") from error
        return timezone

    @field_validator("notify")
    @classmethod
    def _slugs(cls, notify: tuple[str, ...]) -> tuple[str, ...]:
        for block in notify:
            kind, _, name = block.partition("/")
            if not kind or not name or "/" in name:
                raise ValueError(f"{block!r} is no block; give TYPE/NAME, as `prefect block ls` prints it")
        return notify

    @model_validator(mode="after")
    def _one_schedule(self) -> ServiceConfig:
        if self.cron is not None and self.every_hours is not None:
            raise ValueError("give cron or every_hours, not both")
        return self
