"""Runs a command that must not outlive the process that asked for it: `python warden.py PARENT_PID COMMAND…`.

When the parent is gone, killed or not, or asks for it by SIGTERM, all that the command started is killed, whatever
sessions and groups it has opened: what loses its parent becomes this process's child (Linux, `prctl(2)`).
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time

import psutil

POLL_SECONDS = 0.2
PR_SET_CHILD_SUBREAPER = 36


def main() -> None:
    """Run the command to its end, or to the parent's."""
    parent = int(sys.argv[1])
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        command = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL)
    except OSError as error:
        sys.exit(f"{sys.argv[2]}: {error.strerror}")
    try:
        while command.poll() is None and os.getppid() == parent:
            time.sleep(POLL_SECONDS)
    finally:
        _end()
    code = command.wait()
    sys.exit(code if code >= 0 else 128 - code)


def _end() -> None:
    """Kill until nobody is left: what is killed may leave children of its own to this process."""
    while left := psutil.Process().children(recursive=True):
        for process in left:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(left, timeout=POLL_SECONDS)


if __name__ == "__main__":
    main()
