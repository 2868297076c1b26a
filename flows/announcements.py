"""What the first of several nodes tells the others, in the workspace that all of them share.

    <workspace>/nodes/launch.json   {"key", "program", "plan", "ranks", "logs"} while the first node's agent runs

It is gone when the launch is over or its command ended; a node then ends what is left of it on its own side.

    <workspace>/nodes/ended         touched when a command of the first node has ended well: the nodes may go
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


def forget(workspace: Path) -> None:
    """Take back what a command that was killed had announced."""
    announcement(workspace).unlink(missing_ok=True)


def dismiss(workspace: Path) -> None:
    """Tell the nodes, if there are any, that the command has ended well."""
    if (folder := announcement(workspace).parent).is_dir():
        (folder / "ended").touch()


def dismissed(workspace: Path) -> int:
    """When the nodes were last told so, by the clock of the shared folder; 0 if never."""
    mark = announcement(workspace).parent / "ended"
    return mark.stat().st_mtime_ns if mark.exists() else 0


def announced_launch(path: Path) -> dict[str, Any] | None:
    """What is announced, if anything is."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
