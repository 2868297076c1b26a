"""How often a holdout set has decided: each judged cycle is a look at it, counted in the ledger by the set's digest.

Every look promotes a model that should not be with at most the guardrail's error level, and a champion that was chosen
on a set looks better on it than it is; so a set is retired after `guardrail.max_looks`.
"""

from __future__ import annotations

from flows.stages import Cycle

ALL = 2**31 - 1  # events


def looks_before(cycle: Cycle, *, by_hand: bool = False) -> int:
    """How often this cycle's holdout set has decided: in earlier cycles, and by hand; `by_hand` now: in any cycle."""
    judged = [
        event
        for event in cycle.ledger.log(ALL)
        if event.state == "judged" and event.detail.get("holdout") == cycle.digests["holdout"]
    ]
    cycles = {event.cycle for event in judged if "by" not in event.detail and (by_hand or event.cycle < cycle.number)}
    return len(cycles) + sum("by" in event.detail for event in judged)


def refusal(cycle: Cycle, *, by_hand: bool = False) -> str:
    """Why this cycle may not be judged, or judged once more by hand; empty where it may."""
    looks, most = looks_before(cycle, by_hand=by_hand), cycle.config.guardrail.max_looks
    if looks < most:
        return ""
    return (
        f"{looks} cycles were judged on this holdout set, and guardrail.max_looks = {most}: nothing is promoted until "
        "the workload gives a fresh one"
    )
