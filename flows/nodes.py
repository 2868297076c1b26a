"""The other nodes: each joins what the first announces in the workspace, with an agent of its own on the same plan."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flows.agents import Launch, agent
from flows.announcements import announced_launch, announcement, dismissed
from flows.config import Config
from flows.errors import BadInput
from flows.holding import is_held
from flows.sections.launching import nodes_of

POLL_SECONDS = 0.2
RANKS_OF_NODE = ("NODE_RANK", "JOB_COMPLETION_INDEX")  # of a Kubernetes job; of whatever else numbers its nodes


def join(config: Config, rank: int | None, say: Callable[[str], None]) -> None:
    """Join every launch of the first node, until its command has ended well; one that fails or is killed may come back.

    Args:
        config: The same settings as the first node's.
        rank: Number of this node; None: the environment says it.
        say: Is told what is joined and how it ended.

    Raises:
        BadInput: No such node is to join.
    """
    node = _number(rank, nodes_of(config.launch.launcher))
    workspace, joined = config.workspace, ""
    before = dismissed(workspace)
    say(f"node {node} waits for `tamis run` in {workspace}")
    while dismissed(workspace) == before:
        said = announced_launch(announcement(workspace))
        if said is not None and said["key"] != joined and is_held(workspace):
            joined = said["key"]
            _join(config, node, said, say)
        time.sleep(POLL_SECONDS)


def _number(given: int | None, nodes: int) -> int:
    known = [os.environ[name] for name in RANKS_OF_NODE if os.environ.get(name, "").isdigit()]
    if given is None and not known:
        raise BadInput(f"which node is this? give --rank, or {' or '.join(RANKS_OF_NODE)} in the environment")
    node = int(known[0]) if given is None else given
    if not 0 < node < nodes:
        raise BadInput(f"node {node} cannot join: launch.launcher has {nodes} in all, the first is 0")
    return node


def _join(config: Config, node: int, said: Mapping[str, Any], say: Callable[[str], None]) -> None:
    path = announcement(config.workspace)
    launch = Launch(
        program=said["program"],
        plan=Path(said["plan"]),
        ranks=said["ranks"],
        logs=Path(said["logs"]),
        heartbeat_seconds=config.launch.heartbeat_seconds,
        launcher=config.launch.launcher,
    )
    with agent(launch, node, said["key"]) as process:
        say(f"{launch.program}: joined")
        while process.poll() is None and announced_launch(path) == said and is_held(config.workspace):
            time.sleep(POLL_SECONDS)
    say(f"{launch.program}: {'over' if process.returncode == 0 else f'ended with code {process.returncode}'}")
