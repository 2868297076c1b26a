"""Runs a command that must not outlive the process that asked for it: `python warden.py PARENT_PID COMMAND…`.

It leads a process group. When the parent is gone, killed or not, the group is killed with all that the command started.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

POLL_SECONDS = 0.2


def main() -> None:
    """Run the command to its end, or to the parent's."""
    parent = int(sys.argv[1])
    try:
        command = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL)
    except OSError as error:
        sys.exit(f"{sys.argv[2]}: {error.strerror}")
    while command.poll() is None:
        if os.getppid() != parent:
            os.killpg(0, signal.SIGKILL)
        time.sleep(POLL_SECONDS)
    sys.exit(command.returncode if command.returncode >= 0 else 128 - command.returncode)


if __name__ == "__main__":
    main()
