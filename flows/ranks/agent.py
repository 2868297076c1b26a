"""A launcher, tied to the process that started it: `python -m flows.ranks.agent PARENT_PID ERROR_FILE LAUNCHER …`.

A rank that is killed can say nothing, and the others only that they lost it; the agent saw it, and writes it to the
error file.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from flows.ranks.lifeline import AGENT, die_with_parent
from storage.files import JSON, atomic_write_json


def main() -> None:
    """Run torchrun or DeepSpeed's launcher until the ranks end or the parent dies."""
    parent, errors, launcher, *arguments = sys.argv[1:]
    die_with_parent(int(parent))
    os.environ[AGENT] = str(os.getpid())
    (_torchrun if launcher == "torchrun" else _deepspeed)(arguments, Path(errors))


def _torchrun(arguments: list[str], errors: Path) -> None:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    try:
        torchrun(arguments)
    except ChildFailedError as error:
        for rank, failure in error.failures.items():
            if failure.exitcode == -signal.SIGKILL:
                _killed(errors, rank)
        sys.exit(1)


def _deepspeed(arguments: list[str], errors: Path) -> None:
    """DeepSpeed's launcher ends with the code of the rank that failed first, and does not say which it was."""
    from deepspeed.launcher.launch import main as launch

    sys.argv[1:] = arguments
    try:
        launch()
    except SystemExit as leaving:
        if leaving.code == -signal.SIGKILL:
            _killed(errors, None)
        raise


def _killed(errors: Path, rank: int | None) -> None:
    message = "was killed (SIGKILL; out of memory?)"
    record: dict[str, JSON] = {"kind": "killed", "rank": rank, "message": message, "time": time.time()}
    atomic_write_json(errors, record)


if __name__ == "__main__":
    main()
