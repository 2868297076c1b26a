"""Sections `pruning`, `review` and `guardrail`: what leaves the data, who agrees, and what must be shown for it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from flows.sections.base import Count, Rate, Section, Share

Hours = Annotated[float, Field(gt=0, le=100_000)]
Policy = Literal["harmful", "mislabeled", "memorized", "redundant", "balanced"]


class PruningConfig(Section):
    """What may be proposed, and how much of it."""

    policies: tuple[Policy, ...] = ("harmful", "mislabeled")
    harmful_q: Rate = 0.2
    """False-discovery rate of harmful; a larger one is for errors that repeat themselves, and costs good points where
    none do."""
    mislabeled_q: Rate = 0.05
    """The same of mislabeled. What it takes in error is right and hard, and a model without such points is too sure."""
    memorized_q: Rate = 0.2
    """The same of memorized."""
    agreement: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the checkpoints that must agree on the sign of the influence, for harmful and memorized; 0: any. Under
    `scoring.compression` each has a mask of its own."""
    mislabeled_action: Literal["remove", "relabel"] = "remove"
    """What becomes of a mislabeled point; `relabel` gives it the suggested label."""
    redundant_share: Rate = 0.2
    """Share of each class and group that redundant may leave out."""
    balanced_share: Rate = 0.4
    """Share of the points of each score shard that balanced may leave out."""
    z_restore: Annotated[float, Field(gt=1)] = 3.0
    """Standard errors by which a removed point must be helpful, in two cycles running, to be proposed for return."""
    budget: Share = 0.15
    """Largest share of the train set removed or relabelled in one cycle."""
    cumulative_budget: Share = 0.3
    """Largest share of the manifest that may stand removed or relabelled."""
    class_budget: Share = 0.5
    """Largest share of one given label's points that may stand removed or relabelled."""
    group_budget: Share = 1.0
    """The same of one group's points."""
    minimum_kept: Count = 1
    """Points that always stay in training."""
    class_minimum_kept: Annotated[int, Field(ge=0)] = 0
    """Points of each given label that always stay in training."""
    protected: tuple[int | str, ...] = ()
    """Ids that are never removed or relabelled."""
    protected_file: Path | None = None
    """More of them, one a line, in a text file beside the TOML."""
    protected_groups: tuple[str, ...] = ()
    """Groups whose points are never removed or relabelled."""
    cooldown: Annotated[int, Field(ge=0)] = 2
    """Cycles during which a point that was restored, rejected or rolled back is not proposed again."""

    @field_validator("policies")
    @classmethod
    def _named_once(cls, policies: tuple[str, ...]) -> tuple[str, ...]:
        if not policies or len(set(policies)) < len(policies):
            raise ValueError("name at least one policy, each once")
        return policies

    @field_validator("protected_file")
    @classmethod
    def _beside(cls, file: Path | None, info: ValidationInfo) -> Path | None:
        return file if file is None or info.context is None else Path(info.context["folder"]) / file


class ReviewConfig(Section):
    """Who approves."""

    mode: Literal["auto", "manual"] = "manual"
    """`auto` approves what is within the budgets; `manual` waits for `tamis approve HASH`."""
    second_person_above: Share | None = None
    """Share of the train set above which a proposal takes two named persons; default: one always suffices."""
    expires_hours: Hours | None = None
    """After which an open proposal is closed, and nothing removed; default: never."""
    remind_hours: Hours | None = None
    """Between reminders of an open proposal; default: none."""


class GuardrailConfig(Section):
    """What must be shown before a model is promoted."""

    seeds: Annotated[int, Field(ge=2)] = 3
    """Most seeds of each arm; two are trained first, one more each time while the answer is open."""
    tolerance: Annotated[float, Field(ge=0)] = 0.01
    """Nats per holdout point that the challenger may lose against baseline and champion."""
    redundant_tolerance: Annotated[float, Field(ge=0)] = 0.01
    """Nats per holdout point that the challenger may lose against baseline, control and champion where all that leaves
    is redundant or balanced: then it need not be better than the control."""
    group_tolerance: Annotated[float, Field(ge=0)] = 0.05
    """Nats per holdout point that a class or group may lose before promotion is refused."""
    resamples: Annotated[int, Field(ge=100)] = 2000
    """Draws that bounds and p-values are made of."""
    max_looks: Count = 20
    """Cycles judged on one holdout set: as many at 5 % are one false promotion to be expected."""
