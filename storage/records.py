"""What the ledger returns: frozen rows. Times are UTC without a zone; ledger point ids are text."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeAlias

from storage.points import IdKind

State: TypeAlias = Literal[
    "opened",
    "trained",
    "scored",
    "proposed",
    "approved",
    "rejected",
    "applied",
    "retrained",
    "judged",
    "promoted",
    "rolled_back",
    "nothing_to_do",
    "awaiting_review",
    "failed",
]
Decision: TypeAlias = Literal["approve", "reject"]
FINAL: tuple[State, ...] = ("promoted", "rolled_back", "nothing_to_do")
DATA_MOVED = "rule:data-moved"
"""The actor of a roll-back that says nothing of its points: the train set changed while the cycle was open."""


@dataclass(frozen=True)
class CycleRecord:
    """One cycle as it was opened; `dataset_sha256` is that of the view it started from."""

    cycle: int
    parent: int | None
    dataset_sha256: str
    config: Mapping[str, Any]
    versions: Mapping[str, str]
    id_kind: IdKind
    mlflow_run_id: str | None
    started_at: datetime


@dataclass(frozen=True)
class EventRecord:
    """One step of a cycle; `key` tells apart several events of one state, e.g. the arms retrained."""

    seq: int
    cycle: int
    state: State
    key: str
    actor: str
    event_at: datetime
    detail: Mapping[str, Any]


@dataclass(frozen=True)
class ProposalRecord:
    """A proposal as it was recorded."""

    cycle: int
    hash: str
    dataset_sha256: str
    scores_sha256: str
    policy: Mapping[str, Any]
    size: int
    proposed_at: datetime


@dataclass(frozen=True)
class ReviewRecord:
    """The decision on one proposal: who made it and how (cli, rule, mlflow, prefect)."""

    cycle: int
    proposal: str
    decision: Decision
    actor: str
    how: str
    reason: str
    event_at: datetime


@dataclass(frozen=True)
class ActionRecord:
    """One removal or restoration of one point; score and threshold are in the unit of the deciding policy."""

    seq: int
    cycle: int
    point_id: str
    action: Literal["remove", "restore"]
    reason: str
    score: float | None
    threshold: float | None
    estimator: str | None
    checkpoint_digest: str | None
    proposal: str | None
    actor: str
    content: str
    event_at: datetime


@dataclass(frozen=True)
class Mention:
    """A proposal that named the point, and what became of it; decision and actor are None while it waits."""

    cycle: int
    proposal: str
    reason: str
    score: float | None
    threshold: float | None
    decision: Decision | None
    actor: str | None


@dataclass(frozen=True)
class Explanation:
    """Everything the ledger knows of one point; `removal` is its newest removal."""

    point_id: str
    removed: bool
    removal: ActionRecord | None
    actions: tuple[ActionRecord, ...]
    proposals: tuple[Mention, ...]
