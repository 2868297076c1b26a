"""The stage `score`: influence and suspicion of every point, sharded over the ranks, as Parquet shards."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from flows.plans import DIRECTIONS, ScorePlan
from flows.recipe import horizon
from flows.relabeling import write_labels
from flows.spent import Spent
from flows.stages import Cycle, once
from flows.training import Trained, planned_steps, write_ids
from flows.trust import Probe
from influence.blocks import BlockSummary
from influence.sharding import ChunkGrid
from storage import score_store
from storage.files import JSON, sha256_json

HOW = {"ranks", "placement", "factor_cache"}
"""Keys that change how fast scores come and not what they are, beyond their last digits."""


@dataclass(frozen=True)
class Scored:
    """The scores of the cycle.

    Attributes:
        folder: Of the shards.
        sha256: Of all shards.
        rows: Points scored.
        estimator: What computed the influence, on which blocks, with which damping.
        seconds: Of the scoring, ranks' start included.
        inputs_digest: What the shards, and the curvature kept beside them, are known by.
        spent: What the ranks spent; None where all shards were there.
    """

    folder: Path
    sha256: str
    rows: int
    estimator: Mapping[str, Any]
    seconds: float
    inputs_digest: str
    spent: Spent | None = None

    @property
    def blocks(self) -> BlockSummary:
        """How much of the model the blocks are."""
        found: BlockSummary = TypeAdapter(BlockSummary).validate_python(self.estimator["selection"])
        return found

    @property
    def classes(self) -> bool:
        """Whether points have labels that may be suspected."""
        return self.estimator["suspicion"] is not None

    @property
    def probe(self) -> Probe | None:
        """How they compare with all parameters, where that was asked."""
        found: Probe | None = TypeAdapter(Probe | None).validate_python(self.estimator["probe"])
        return found


def score(cycle: Cycle, trained: Trained) -> Scored:
    """Score all points from the baseline's checkpoints."""
    inputs = cycle.section("workload", "scoring", without=HOW) | {
        "training": cycle.config.training.recipe(),
        "dataset": cycle.dataset_sha256,
        "train": cycle.digests["train"],
        "query": cycle.digests["query"],
        "code": cycle.digests["code"],
        "checkpoint": trained.digest,
    }
    if "balanced" in cycle.config.pruning.policies:
        inputs["balanced"] = True
    return once(
        cycle,
        "score",
        Scored,
        inputs,
        lambda: _score(cycle, trained, sha256_json(inputs)),
        decided=cycle.applied,
        intact=lambda scored: score_store.load(scored.folder) is not None,
    )


def _score(cycle: Cycle, trained: Trained, inputs_digest: str) -> Scored:
    config = cycle.config
    folder, planned = cycle.folder / "scores", planned_steps(cycle)
    plan = ScorePlan(
        config=config,
        logs=cycle.folder / "logs",
        train_digest=cycle.digests["train"],
        cycle=cycle.number,
        checkpoints=trained.checkpoints,
        removed=write_ids(cycle.folder / "plans" / "removed.parquet", cycle.removed, cycle.manifest),
        relabeled=write_labels(cycle.folder / "plans" / "relabeled.parquet", cycle.relabeled, cycle.manifest),
        folder=folder,
        checkpoint_digest=trained.digest,
        inputs_digest=inputs_digest,
        horizon=horizon(config.training, trained.steps, planned),
        share=trained.steps / planned,
        dropped=trained.dropped,
    )
    started, spent = time.monotonic(), None
    score_store.sweep(folder, inputs_digest)
    parts = score_store.parts(folder, inputs_digest)
    parts.sweep()
    chunks = len(ChunkGrid(len(cycle.manifest), config.scoring.chunk))
    if score_store.missing_chunks(folder, chunks, inputs_digest):
        score_store.discard(folder)
        logs = cycle.launch("score", plan, config.scoring.ranks)
        spent = Spent.read(logs / f"score-rank{rank}.json" for rank in range(config.scoring.ranks))
    scores = score_store.finish(folder, chunks)
    parts.clear(f"curvature, {trained.checkpoints[-1].name}", DIRECTIONS)  # which the preview reads
    detail: dict[str, JSON] = {"scores": scores.sha256, "rows": scores.rows}
    cycle.ledger.record_event(cycle.number, "scored", detail=detail, key=scores.sha256)
    metadata = scores.metadata
    return Scored(
        folder=folder,
        sha256=scores.sha256,
        rows=scores.rows,
        estimator={"estimator": metadata.estimator, "blocks": list(metadata.blocks), "damping": metadata.damping}
        | dict(metadata.extra),
        seconds=time.monotonic() - started,
        inputs_digest=inputs_digest,
        spent=spent,
    )
