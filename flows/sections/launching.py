"""Section `launch`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from flows.errors import BadInput
from flows.sections.base import Count, Section


class Torchrun(Section):
    """Ranks started by torchrun: on this machine, or on several nodes that share the workspace's folder."""

    kind: Literal["torchrun"] = "torchrun"
    nnodes: Count = 1
    """On one of them `tamis run` is started, on each of the others `tamis node`."""
    rdzv_endpoint: Annotated[str, Field(pattern=r"^\S+:\d+$")] | None = None
    """`HOST:PORT` of the node with `tamis run`, as the others reach it; for more than one."""

    @model_validator(mode="after")
    def _met(self) -> Torchrun:
        if (self.nnodes > 1) != (self.rdzv_endpoint is not None):
            needed = "needs" if self.nnodes > 1 else "takes no"
            raise ValueError(f"nnodes = {self.nnodes} {needed} rdzv_endpoint, HOST:PORT of the first node")
        return self


class Hosts(Section):
    """Ranks started by DeepSpeed's launcher on the hosts of a file, which share the workspace's folder."""

    kind: Literal["deepspeed"]
    hostfile: Path
    """Lines `HOST slots=RANKS`. On the first host `tamis run` is started, on each of the others `tamis node`."""
    port: Annotated[int, Field(ge=1, le=65535)] = 29500
    """Of the first host, where the others reach it."""

    @property
    def slots(self) -> dict[str, int]:
        """Ranks of each host, in the order of the file.

        Raises:
            BadInput: There is no such file, or it is none.
        """
        if not self.hostfile.is_file():
            raise BadInput(f"launch.launcher.hostfile {self.hostfile}: no such file")
        lines = [line.split("#")[0].strip() for line in self.hostfile.read_text(encoding="utf-8").splitlines()]
        found = [re.fullmatch(r"(\S+)\s+slots=([1-9]\d*)", line) for line in lines if line]
        slots = {match[1]: int(match[2]) for match in found if match}
        if not slots or len(slots) != len(found):
            raise BadInput(f"launch.launcher.hostfile {self.hostfile}: give lines `HOST slots=RANKS`, each host once")
        return slots


Launcher = Annotated[Torchrun | Hosts, Field(discriminator="kind")]


def nodes_of(launcher: Launcher) -> int:
    """How many nodes a launcher starts ranks on."""
    return launcher.nnodes if isinstance(launcher, Torchrun) else len(launcher.slots)


class LaunchConfig(Section):
    """How ranks are started and watched, and what happens when they fail."""

    heartbeat_seconds: Annotated[float, Field(gt=0)] = 300.0
    """A rank that shows no progress for this long is ended, and with it the attempt."""
    attempts: Count = 2
    """How often ranks that were killed, hung or threw are started in all; what is finished is not done again."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where ranks train, score and preview: `auto` is a GPU for each where the machine has any, else the CPU."""
    backend: Literal["auto", "gloo", "nccl"] = "auto"
    """What tensors travel through between ranks: `auto` is nccl for those on GPUs, gloo for others."""
    launcher: Launcher = Torchrun()
    oversubscribe: bool = False
    """More ranks than this machine has cores, which then share them: slower, and not wrong."""

    @model_validator(mode="after")
    def _connected(self) -> LaunchConfig:
        if self.device == "cpu" and self.backend == "nccl":
            raise ValueError('backend = "nccl" is between GPUs, and device = "cpu": leave one of the two out')
        return self
