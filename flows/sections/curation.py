"""Sections `pruning`, `review` and `guardrail`: what leaves the data, who agrees, and what must be shown for it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from flows.sections.base import Count, Rate, Section, Share


class PruningConfig(Section):
    """What may be proposed, and how much of it."""

    policies: tuple[Literal["harmful", "mislabeled"], ...] = ("harmful", "mislabeled")
    q: Rate = 0.2
    """False-discovery rate of each policy."""
    budget: Share = 0.15
    """Largest share of the train set removed in one cycle."""
    cumulative_budget: Share = 0.3
    """Largest share of the manifest that may stand removed."""
    class_budget: Share = 0.5
    """Largest share of one given label's points that may stand removed."""
    protected: tuple[int | str, ...] = ()
    """Ids that are never removed."""
    cooldown: Annotated[int, Field(ge=0)] = 2
    """Cycles during which a point that was restored, rejected or rolled back is not proposed again."""

    @field_validator("policies")
    @classmethod
    def _named_once(cls, policies: tuple[str, ...]) -> tuple[str, ...]:
        if not policies or len(set(policies)) < len(policies):
            raise ValueError("name at least one policy, each once")
        return policies


class ReviewConfig(Section):
    """Who approves."""

    mode: Literal["auto", "manual"] = "manual"
    """`auto` approves what is within the budgets; `manual` waits for `tamis approve HASH`."""


class GuardrailConfig(Section):
    """What must be shown before a model is promoted."""

    seeds: Annotated[int, Field(ge=2)] = 3
    """Most seeds of each arm; two are trained first, one more each time while the answer is open."""
    tolerance: Annotated[float, Field(ge=0)] = 0.01
    """Nats per holdout point that the challenger may lose against baseline and champion."""
    group_tolerance: Annotated[float, Field(ge=0)] = 0.05
    """Nats per holdout point that a class or group may lose before promotion is refused."""
    resamples: Annotated[int, Field(ge=100)] = 2000
    """Draws that bounds and p-values are made of."""
    max_looks: Count = 20
    """Cycles judged on one holdout set: as many at 5 % are one false promotion to be expected."""
