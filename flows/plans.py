"""What a flow hands to its ranks: one JSON file for each program, checked when it is read."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict

from flows.config import Config
from storage.files import atomic_path, read_json

HOLDOUT = "holdout.parquet"
"""In a job's folder: what the model makes of the holdout set."""

QUERIES = "queries.parquet"
"""In a job's folder: what the model makes of the query set."""

STOPPED = "stopped.json"
"""In a job's folder: after which step it was stopped, and the query losses that said so."""
STATE = "state"
"""In a job's folder: what a training under way is resumed from."""
GIVEN = "given"
"""In a job's folder: what `training.command` left."""
DIRECTIONS = "directions"
"""Among the parts of a scoring: by checkpoint, what gradients are multiplied by to give influence."""


class Plan(BaseModel):
    """What every program needs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    config: Config
    logs: Path
    train_digest: str
    """Of the train set that the cycle was opened on; ranks read the same or stop."""


class Job(BaseModel):
    """One model to train, or, with `weights`, one to judge as it is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: str
    """`baseline`, `challenger`, `control`, `champion`, or `retrained` by hand."""
    seed: int
    steps: int
    planned: int
    """Steps of the learning rates' schedule; more than `steps` where the baseline was stopped early."""
    stops: bool = False
    """Whether it may end before `steps`: the baseline that decides for the others."""
    removed: Path | None = None
    """Parquet file of the ids to leave out."""
    relabeled: Path | None = None
    """Parquet file of the labels that are in force in place of the given ones."""
    folder: Path
    """Checkpoints go here, and beside them the holdout outcomes."""
    save_at: tuple[int, ...] = ()
    """Steps after which parameters are saved; the last is the end of the training."""
    weights: Path | None = None

    @property
    def ended(self) -> int:
        """After which step it ended, or will if nothing stops it."""
        stopped = self.folder / STOPPED
        return int(read_json(stopped)["steps"]) if self.stops and stopped.exists() else self.steps

    @property
    def saved(self) -> tuple[Path, ...]:
        """The checkpoints it leaves, the last of which ends it."""
        steps = (*(step for step in self.save_at if step < self.ended), self.ended)
        return tuple(self.folder / f"step-{step:06d}" for step in steps)

    @property
    def last(self) -> Path:
        """The checkpoint that ends it."""
        return self.saved[-1]

    @property
    def done(self) -> bool:
        """Whether it is trained: every checkpoint is there, and it was judged."""
        return all(path.exists() for path in (*self.saved, self.folder / HOLDOUT))


class TrainPlan(Plan):
    """The models to train one after the other, each on all ranks."""

    jobs: tuple[Job, ...]


class ScorePlan(Plan):
    """The scoring of all points from the checkpoints of one model."""

    cycle: int
    checkpoints: tuple[Path, ...]
    removed: Path
    """Parquet file of the ids removed in earlier cycles."""
    relabeled: Path | None = None
    """Parquet file of the labels that earlier cycles put in place of the given ones."""
    folder: Path
    """Score shards go here."""
    checkpoint_digest: str
    inputs_digest: str
    horizon: float
    """Sum of the learning rates over the training, for the damping kind `horizon`."""
    sample: int | None = None
    """Only so many points, at even distances: a trial, of which the time for all is foretold."""
    share: float = 1.0
    """Of the planned training, after which it was stopped: out-of-fold models are, too."""
    dropped: int = 0
    """Points in training that the model dropped while it learned; they count and are scored like the others."""


class PreviewPlan(Plan):
    """A proposal carried out on a checkpoint without training."""

    checkpoint: Path
    checkpoint_digest: str
    horizon: float
    removed: Path
    """Parquet file of the ids that the checkpoint was trained without."""
    relabeled: Path
    """Parquet file of the labels that it was trained with in place of the given ones."""
    then_removed: Path
    """As `removed`, once the proposal is carried out."""
    then_relabeled: Path
    """As `relabeled`, once the proposal is carried out."""
    scores: Path
    """Folder of the scores, with the fitted curvature beside them."""
    inputs_digest: str
    file: Path
    """What the models make of the query set goes here."""
    checkpoints: tuple[Path, ...] = ()
    """That points were scored on."""
    shown: tuple[int | str, ...] = ()
    """Points whose influence is told by position, where the workload has `tokens`."""
    positions: Path | None = None
    """What is told goes here, unless it is there."""


AnyPlan = TypeVar("AnyPlan", bound=Plan)


def write_plan(plan: Plan, path: Path) -> Path:
    """Write a plan where ranks can read it, and nobody else: the workload's options may hold secrets."""
    with atomic_path(path) as draft:
        draft.touch(mode=0o600)
        draft.write_text(plan.model_dump_json(by_alias=True), encoding="utf-8")
    return path


def read_plan(kind: type[AnyPlan], path: Path) -> AnyPlan:
    """Read a plan."""
    return kind.model_validate_json(path.read_text(encoding="utf-8"))
