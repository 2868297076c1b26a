"""A process that must not outlive its parent asks the kernel to be killed with it (Linux, `prctl(2)`)."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
AGENT = "TAMIS_AGENT"
"""Names the agent's process id to its ranks, which may come to ask for it after it has died."""


def die_with_parent(parent: int) -> None:
    """Be killed when the parent dies; exit at once if it is dead already.

    Args:
        parent: The process id the parent had when it started this process.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            sys.exit(1)
