"""What the ranks of a stage spent, put together from what each of them reported."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from storage.files import read_json


@dataclass(frozen=True)
class Spent:
    """Of one launch, from when its ranks are connected.

    Attributes:
        seconds: By phase, of the rank that took longest.
        cpu_seconds: Of all ranks.
        exchange_bytes: Given to collectives by all ranks.
        memory: Most bytes that a rank held.
        device_memory: Most bytes that a rank held on its GPU.
        anew: Nothing of it had been done by an earlier run, or by a command in the ranks' place.
    """

    seconds: Mapping[str, float]
    cpu_seconds: float
    exchange_bytes: int
    memory: int
    device_memory: int
    anew: bool

    @classmethod
    def read(cls, reports: Iterable[Path]) -> Spent:
        """Add up the reports of all ranks."""
        ranks = [read_json(report) for report in reports]
        return cls(
            seconds=max((rank["seconds"] for rank in ranks), key=lambda phases: sum(phases.values())),
            cpu_seconds=round(sum(sum(rank["cpu_seconds"].values()) for rank in ranks), 3),
            exchange_bytes=sum(rank["exchange_bytes"] for rank in ranks),
            memory=max(rank["peak_bytes"] for rank in ranks),
            device_memory=max(rank["device_bytes"] for rank in ranks),
            anew=not any(rank["found"] for rank in ranks),
        )

    def __add__(self, other: Spent) -> Spent:
        """Of two launches, one after the other."""
        phases = dict.fromkeys((*self.seconds, *other.seconds))
        return Spent(
            seconds={phase: self.seconds.get(phase, 0.0) + other.seconds.get(phase, 0.0) for phase in phases},
            cpu_seconds=round(self.cpu_seconds + other.cpu_seconds, 3),
            exchange_bytes=self.exchange_bytes + other.exchange_bytes,
            memory=max(self.memory, other.memory),
            device_memory=max(self.device_memory, other.device_memory),
            anew=self.anew and other.anew,
        )

    def said(self, points: int) -> str:
        """One line for the page of a run that scored so many points."""
        total = sum(self.seconds.values())
        rate = f"{points / total:,.1f} points/s, " if self.anew else ""
        moved = f"{self.exchange_bytes / 1e6:,.1f} MB between ranks"
        return f"Scoring: {total:,.1f} s, {rate}{self.cpu_seconds:,.1f} CPU s, {moved}."
