"""What a rank spends: seconds in each phase of its work, memory, and what it gives to the others."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from storage.files import JSON


class Meter:
    """Counts from when it is made; what a GPU is given to do counts where its end is waited for.

    Args:
        device: Whose memory counts beside that of the process.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._phase, self._since = "start", (time.monotonic(), time.process_time())
        self._seconds: dict[str, float] = defaultdict(float)
        self._cpu: dict[str, float] = defaultdict(float)
        self._waited, self._moved = 0.0, 0

    def enter(self, phase: str) -> None:
        """What comes from now on belongs to this phase."""
        now = (time.monotonic(), time.process_time())
        self._seconds[self._phase] += now[0] - self._since[0]
        self._cpu[self._phase] += now[1] - self._since[1]
        self._phase, self._since = phase, now

    @contextmanager
    def exchange(self, size: int) -> Iterator[None]:
        """A collective of so many bytes on this rank, the wait for the others included."""
        started = time.monotonic()
        yield
        self._waited += time.monotonic() - started
        self._moved += size

    def figures(self) -> dict[str, JSON]:
        """Seconds and CPU seconds by phase, seconds in collectives, bytes given to them, and the most memory held."""
        self.enter("end")
        return {
            "seconds": {phase: round(value, 3) for phase, value in self._seconds.items()},
            "cpu_seconds": {phase: round(value, 3) for phase, value in self._cpu.items()},
            "exchange_seconds": round(self._waited, 3),
            "exchange_bytes": self._moved,
            "peak_bytes": peak_bytes(),
            "device": str(self._device),
            "device_bytes": torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else 0,
        }


def peak_bytes() -> int:
    """The most memory that this process has held, as Linux counts it."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
