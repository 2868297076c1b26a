"""torchrun, tied to the process that started it: `python -m flows.ranks.agent PARENT_PID ERROR_FILE <torchrun …>`.

A rank that is killed can say nothing, and the others only that they lost it; the agent saw which one, and writes it to
the error file.
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
    """Run torchrun until the ranks end or the parent dies."""
    die_with_parent(int(sys.argv[1]))
    os.environ[AGENT] = str(os.getpid())
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    try:
        torchrun(sys.argv[3:])
    except ChildFailedError as error:
        for rank, failure in error.failures.items():
            if failure.exitcode == -signal.SIGKILL:
                message = "was killed (SIGKILL; out of memory?)"
                record: dict[str, JSON] = {"kind": "killed", "rank": rank, "message": message, "time": time.time()}
                atomic_write_json(Path(sys.argv[2]), record)
        sys.exit(1)


if __name__ == "__main__":
    main()
