"""The stage `preview`: what the proposal is foretold to do to the query set, before anybody reviews it.

The proposal is carried out on the baseline's last checkpoint without training (influence/removal.py, unlearning.py).
Only queries are asked: nothing decides by the holdout set before the guardrail does.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flows.foreseen import Foreseen, foreseen
from flows.plans import PreviewPlan
from flows.pruning import Proposed
from flows.recipe import horizon
from flows.relabeling import write_labels
from flows.retraining import Retrained, pruned
from flows.scoring import Scored
from flows.spent import Spent
from flows.stages import Cycle, once
from flows.training import Trained, planned_steps, write_ids
from storage import score_store
from storage.files import JSON
from storage.proposals import Proposal

SHOWN = 100
"""Points whose influence is told by position: each is read once by each checkpoint."""


@dataclass(frozen=True)
class Preview:
    """What was foretold.

    Attributes:
        skipped: Why nothing was, or empty.
        file: What the models make of every query.
        positions: Where in their texts points carry their influence, for workloads that have `tokens`.
        spent: What the ranks spent.
    """

    skipped: str
    file: Path | None = None
    spent: Spent | None = None
    positions: Path | None = None

    def against(self, retrained: Retrained | None) -> tuple[Foreseen, ...]:
        """Each method's prediction, with the truth beside it once there is one."""
        if self.file is None:
            return ()
        arms = None
        if retrained is not None and "challenger" in retrained.folders:
            arms = retrained.folders["baseline"], retrained.folders["challenger"]
        return foreseen(self.file, arms)


def preview(cycle: Cycle, trained: Trained, scored: Scored, proposed: Proposed) -> Preview:
    """Foretell the challenger, and drop the curvature that the scoring kept for this."""
    inputs: dict[str, JSON] = {"proposal": proposed.hash if proposed.size else "", "scores": scored.sha256}
    inputs["code"] = cycle.digests["code"]
    found = once(
        cycle,
        "preview",
        Preview,
        inputs,
        lambda: _preview(cycle, trained, scored, proposed),
        decided=cycle.applied,
        intact=lambda kept: all(path is None or path.exists() for path in (kept.file, kept.positions)),
    )
    score_store.parts(scored.folder, scored.inputs_digest).clear()
    return found


def _preview(cycle: Cycle, trained: Trained, scored: Scored, proposed: Proposed) -> Preview:
    if skipped := _skipped(cycle, proposed):
        return Preview(skipped)
    config, plans = cycle.config, cycle.folder / "plans"
    proposal = Proposal.read(cycle.folder)
    removed, relabeled = pruned(cycle, proposal)
    positions = cycle.folder / f"positions-{scored.sha256[:12]}.parquet"
    shown = proposal.rows.sort_by([("rank", "ascending"), ("point_id", "ascending")])["point_id"].to_pylist()
    plan = PreviewPlan(
        config=config,
        logs=cycle.folder / "logs",
        train_digest=cycle.digests["train"],
        checkpoint=trained.checkpoints[-1],
        checkpoint_digest=trained.digest,
        horizon=horizon(config.training, trained.steps, planned_steps(cycle)),
        removed=write_ids(plans / "removed.parquet", cycle.removed, cycle.manifest),
        relabeled=write_labels(plans / "relabeled.parquet", cycle.relabeled, cycle.manifest),
        then_removed=write_ids(plans / "removed-preview.parquet", removed, cycle.manifest),
        then_relabeled=write_labels(plans / "relabeled-preview.parquet", relabeled, cycle.manifest),
        scores=scored.folder,
        inputs_digest=scored.inputs_digest,
        file=cycle.folder / f"preview-{proposed.hash[:12]}.parquet",
        checkpoints=trained.checkpoints,
        shown=tuple(shown[:SHOWN]),
        positions=positions,
    )
    logs = cycle.launch("preview", plan, config.scoring.ranks)
    spent = Spent.read(logs / f"preview-rank{rank}.json" for rank in range(config.scoring.ranks))
    return Preview("", plan.file, spent, positions if positions.exists() else None)


def _skipped(cycle: Cycle, proposed: Proposed) -> str:
    scoring = cycle.config.scoring
    if not proposed.size:
        return "nothing is proposed"
    if scoring.compression is not None:
        return "scoring.compression leaves no step in the space of the parameters"
    if scoring.placement == "partitioned":
        return "with scoring.placement = 'partitioned' no rank has the parameters to move"
    return ""
