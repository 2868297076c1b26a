"""200 digits and a smaller model: a whole cycle in well under a minute, for tests and first steps."""

from __future__ import annotations

from flows.workloads.digits import Digits


class Tiny(Digits):
    """`Digits` with 200 train points.

    Args:
        rate: Share of the train points with a wrong label.
        seed: Of the planted errors.
    """

    def __init__(self, rate: float = 0.1, seed: int = 0) -> None:
        super().__init__("flips", rate, seed, points=200, queries=150, hidden=(32,))
