"""A cycle of 60 points that waits for a review, without the stages before it: the ledger, MLflow and a checkpoint."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from mlflow import MlflowClient

from flows.config import Config, load
from flows.decision import Act, decide
from flows.pruning import Proposed
from flows.review import Reviewed, review
from flows.stages import Cycle
from flows.stores import ledger_of
from flows.training import Trained
from flows.waiting import pending
from storage import checkpoints
from storage.ledger import Ledger
from storage.points import Manifest
from storage.proposals import Proposal
from storage.records import EventRecord, Terms
from storage.tracking import Tracker
from tests.flows.helpers import write_toml

POINTS = (3, 4, 5, 6)
CONTENT = [str(row) for row in range(60)]


@dataclass
class Desk:
    """What a reviewer can reach, and what stands there."""

    file: Path
    cycle: Cycle
    trained: Trained
    proposed: Proposed

    @property
    def config(self) -> Config:
        return self.cycle.config

    @property
    def ledger(self) -> Ledger:
        return self.cycle.ledger

    @property
    def hash(self) -> str:
        return self.proposed.hash

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.cycle.tracker.uri)

    @property
    def run_tags(self) -> dict[str, str]:
        return dict(self.client.get_run(self.cycle.run).data.tags)

    @property
    def version_tags(self) -> dict[str, str]:
        return dict(self.client.get_model_version("blobs", "1").tags)

    def tag(self, run: str = "", version: str = "") -> None:
        """Write the tag as a reviewer does, on either page or on both."""
        if run:
            self.client.set_tag(self.cycle.run, "tamis.review", run)
        if version:
            self.client.set_model_version_tag("blobs", "1", "tamis.review", version)

    def review(self) -> Reviewed:
        return review(self.cycle, self.trained, self.proposed)

    def pending(self) -> str | None:
        found = pending(self.config)
        return None if found is None else found.reason

    def act(self, proposal: str, by: str = "ada", decision: Any = "approve", strike: tuple[str, ...] = ()) -> str:
        return decide(self.file, Act(proposal, decision, by, f"tamis {decision}", "because", strike))

    def events(self, state: str) -> list[EventRecord]:
        return [event for event in self.ledger.events(1) if event.state == state]


Opened = Callable[..., Desk]


def copied(desk: Desk, folder: Path) -> Desk:
    """The same desk in another folder, to be decided at without a trace in the first."""
    shutil.copytree(desk.file.parent, folder, dirs_exist_ok=True)
    config = load(folder / desk.file.name)
    tracker, ledger = Tracker(config.workspace, config.name), ledger_of(config)
    return replace(desk, file=config.file, cycle=replace(desk.cycle, config=config, tracker=tracker, ledger=ledger))


def rows(points: tuple[int, ...]) -> pa.Table:
    return pa.table(
        {
            "point_id": pa.array(points, pa.int64()),
            "action": ["remove"] * len(points),
            "new_label": pa.nulls(len(points), pa.int32()),
            "reason": ["harmful"] * len(points),
            "score": [0.01 * point for point in points],
            "threshold": [0.2] * len(points),
        }
    )


def open_desk(folder: Path, store: Path, **terms: Any) -> Desk:
    """A proposal of 4 of 60 points, under these settings of [review]."""
    file = write_toml(folder, dataset="blobs", review={"mode": "manual", **terms})
    config = load(file)
    config.workspace.mkdir()
    shutil.copy(store, config.workspace)
    tracker, ledger = Tracker(config.workspace, config.name), ledger_of(config)
    run = tracker.cycle_run(1, "d" * 64, {})
    ledger.open_cycle(1, "d" * 64, {}, {}, "int", mlflow_run_id=run)
    manifest = Manifest.build(range(60), CONTENT, CONTENT, [row % 3 for row in range(60)])
    cycle = Cycle(config, 1, manifest, frozenset(), "d" * 64, {}, ledger, tracker, run, lambda _: None)
    draft = checkpoints.begin(cycle.folder / "checkpoints" / "baseline", 1)
    checkpoints.write_tensors(draft, {"w": np.zeros(3)})
    model = checkpoints.commit(draft, checkpoints.Metadata("baseline", 0, 1, "m", 1))
    asked = config.review
    proposed = propose(cycle, POINTS, Terms(60, asked.second_person_above, asked.expires_hours))
    return Desk(file, cycle, Trained((model.path,), model.digest, 1, 0.0), proposed)


def propose(cycle: Cycle, points: tuple[int, ...], terms: Terms) -> Proposed:
    """As the stage `propose` does."""
    made = Proposal(1, rows(points), cycle.dataset_sha256, "0" * 64, {})
    cycle.ledger.add_proposal(made, terms)
    return Proposed(made.hash, len(points), {"harmful": len(points)}, {}, 60, 60, len(points))
