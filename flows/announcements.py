"""What the first of several nodes tells the others, in the workspace that all of them share.

    <workspace>/nodes/launch.json   {"key", "program", "plan", "ranks", "logs"} while the first node's agent runs

It is gone when the launch is over, for whatever reason; a node then ends what is left of it on its own side.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from flows.agents import Launch
from storage.files import atomic_write_json


def announcement(workspace: Path) -> Path:
    """Where nodes look for what to join."""
    return workspace / "nodes" / "launch.json"


@contextmanager
def announced(launch: Launch) -> Iterator[str]:
    """The key of a launch, which the other nodes, if there are any, are told while the context is open."""
    key = uuid4().hex
    if launch.announcement is None:
        yield key
        return
    launch.announcement.parent.mkdir(parents=True, exist_ok=True)
    said = {"program": launch.program, "plan": str(launch.plan), "logs": str(launch.logs)}
    atomic_write_json(launch.announcement, {"key": key, "ranks": launch.ranks, **said})
    try:
        yield key
    finally:
        launch.announcement.unlink(missing_ok=True)


def announced_launch(path: Path) -> dict[str, Any] | None:
    """What is announced, if anything is."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
