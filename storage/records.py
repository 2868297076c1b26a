"""What the ledger returns: frozen rows. Times are UTC without a zone; ledger point ids are text."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal, TypeAlias

from storage.files import JSON
from storage.points import IdKind

State: TypeAlias = Literal[
    "opened",
    "moved",
    "trained",
    "dropped",
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
    "endorsed",
    "superseded",
    "reminded",
    "expired",
]
"""`moved`: what changed in the data at the opening of a cycle; `dropped`: points dropped while learning; `endorsed`:
approved by one person where it takes two; `superseded`: a reviewer struck points out; `expired`: nobody decided in
time, with a key about a proposal, without one about the cycle."""
Action: TypeAlias = Literal["remove", "relabel", "restore"]
Decision: TypeAlias = Literal["approve", "reject"]
Fate: TypeAlias = Literal["approve", "reject", "strike", "supersede", "expire"]
"""What a proposal came to, for one of its points: `strike`: it was struck out; `supersede`: another one was."""
FINAL: tuple[State, ...] = ("promoted", "rolled_back", "nothing_to_do", "expired")
"""What ends a cycle, recorded with the key ''."""
ASIDES: tuple[State, ...] = ("endorsed", "reminded")
"""What is said about a cycle that stays where it is."""
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
class Terms:
    """What the review of a proposal has to fulfil: written into the ledger with it, so that nothing changes it later.

    Attributes:
        in_train: Points in training.
        second_person_above: Share of them above which two persons must approve; None: one always suffices.
        expires_hours: After which nobody can decide any more; None: never.
    """

    in_train: int | None = None
    second_person_above: float | None = None
    expires_hours: float | None = None

    @property
    def detail(self) -> dict[str, JSON]:
        """As it stands in the event `proposed`: nothing where one person decides and there is no hurry."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def persons(self, size: int) -> int:
        """How many must approve a proposal of so many points."""
        if self.second_person_above is None or self.in_train is None:
            return 1
        return 2 if size > self.second_person_above * self.in_train + 1e-9 else 1


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
    """What was done to one point; `new_label` only of a relabeling; score and threshold in the policy's unit."""

    seq: int
    cycle: int
    point_id: str
    action: Action
    new_label: int | None
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
class Relabeling:
    """The label that a point has instead of its own, and the content hash it had when it got it."""

    label: int
    content: str


@dataclass(frozen=True)
class Applied:
    """How many points an applied proposal removed, relabelled and restored."""

    removed: int
    relabeled: int
    restored: int


@dataclass(frozen=True)
class Mention:
    """A proposal that named the point, and what became of it; decision and actor are None while it waits."""

    cycle: int
    proposal: str
    action: Action
    new_label: int | None
    reason: str
    score: float | None
    threshold: float | None
    decision: Fate | None
    actor: str | None


@dataclass(frozen=True)
class Explanation:
    """Everything the ledger knows of one point; `removal` is its newest removal, as it was made first.

    A roll-back of its restoration writes it again, under another cycle, reason and actor.
    """

    point_id: str
    removed: bool
    removal: ActionRecord | None
    actions: tuple[ActionRecord, ...]
    proposals: tuple[Mention, ...]

    def origin(self, action: ActionRecord) -> ActionRecord:
        """The action that a row of a roll-back wrote again; of every other row itself."""
        made = {(mention.cycle, mention.proposal, mention.action) for mention in self.proposals}
        same = [
            one
            for one in self.actions
            if (one.action, one.proposal) == (action.action, action.proposal)
            and (one.cycle, one.proposal, one.action) in made
            and one.seq <= action.seq
        ]
        return same[-1] if same else action
