"""What a cycle did, as one object: the table at its end, `--json`, the MLflow description and the report read it."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from flows.asking import has_classes
from flows.conclusion import Concluded
from flows.estimators import named
from flows.foreseen import Foreseen
from flows.guardrail import ArmOutcome, Check, Verdict
from flows.hindsight import Compared, compare
from flows.looks import refusal
from flows.preview import Preview
from flows.pruning import Proposed
from flows.retraining import Retrained
from flows.review import Reviewed
from flows.savings import Savings, savings
from flows.scoring import Scored
from flows.slices import patterns
from flows.stages import Cycle
from flows.training import Trained
from flows.trust import described
from flows.validation.verdict import warning
from flows.workload import Workload
from influence.validation import precision_recall
from storage.points import PointId
from storage.report_parts import Slice


@dataclass(frozen=True)
class KnownErrors:
    """How the proposal meets errors that the workload knows of (`truth`); a rate of nothing is None."""

    total: int
    found: int
    precision: float | None
    recall: float | None


@dataclass(frozen=True)
class Summary:
    """One cycle; `blocks`, `probe` and `fragility` tell what influence was computed on and how far to trust it.

    Attributes:
        moved: What changed in the data since the cycle before, and what is protected and not there any more; empty
            where nothing did.
        struck: Points that reviewers struck out of what was selected.
        patterns: Slices of the points in training that harm beyond chance, the worst first.
        proof: How many seeds were compared and why no more, and which look at the holdout set it was.
        tag: The MLflow tag that would approve; empty where none can.
        page: Of the cycle's run on an MLflow server; empty where the runs are in the workspace.
        preview: What foretelling the challenger took, or why that was left out.
        foreseen: What was foretold of the query set, and what came of it.
    """

    cycle: int
    state: str
    reason: str
    moved: str
    dataset: str
    dataset_sha256: str
    points: int
    in_train: int
    proposal: str
    proposed: int
    actions: Mapping[str, int]
    struck: int
    removed: int
    relabeled: int
    restored: int
    blocks: str
    probe: str
    fragility: str
    patterns: tuple[str, ...]
    candidates: Mapping[str, int]
    dropped: Mapping[str, int]
    known_errors: KnownErrors | None
    arms: Mapping[str, ArmOutcome]
    checks: tuple[Check, ...]
    proof: str
    preview: str
    foreseen: tuple[Foreseen, ...]
    savings: Savings | None
    forecast: tuple[Compared, ...]
    champion: int | None
    report: Path
    next_commands: tuple[str, ...]
    tag: str
    page: str

    @property
    def decision(self) -> str:
        """What was decided and why, in one sentence."""
        more = "".join(f", {count:,} {word}" for word, count in self.changed.items() if word != "removed")
        undone = ", ".join(f"{count:,} to {action}" for action, count in self.actions.items())
        said = {
            "promoted": f"{self.removed:,} of {self.in_train:,} points are removed{more}, and the model trained so is "
            f"champion: {self.reason}",
            "rolled_back": f"The proposal is undone ({undone}): {self.reason}",
            "nothing_to_do": f"Nothing is removed: {self.reason}",
            "expired": f"Nothing is removed: {self.reason}",
        }
        return said.get(self.state, self.reason)

    @property
    def changed(self) -> Mapping[str, int]:
        """Points that are removed by this cycle, and relabelled and restored if there are any."""
        also = {"relabelled": self.relabeled, "restored": self.restored}
        return {"removed": self.removed, **{word: count for word, count in also.items() if count}}


@dataclass(frozen=True)
class Progression:
    """The results of the stages that have run; the later ones are missing in a cycle that waits or did nothing."""

    trained: Trained
    scored: Scored
    proposed: Proposed
    preview: Preview
    reviewed: Reviewed | None = None
    retrained: Retrained | None = None
    verdict: Verdict | None = None
    concluded: Concluded | None = None


def summarize_cycle(
    cycle: Cycle, workload: Workload, points: Collection[PointId], done: Progression, slices: Sequence[Slice]
) -> Summary:
    """Put the results of the stages together.

    Args:
        cycle: The cycle.
        workload: Its `truth`, if it has one, tells the known errors.
        points: The ids that the proposal names.
        done: The stages' results.
        slices: Of the points in training, the most harmful first.
    """
    proposed, concluded = done.proposed, done.concluded
    state = concluded.state if concluded else ("awaiting_review" if done.reviewed else "proposed")
    reason = concluded.reason if concluded else _open_reason(cycle, proposed, done.reviewed)
    done_with = proposed.actions if state == "promoted" else {}
    return Summary(
        cycle=cycle.number,
        state=state,
        reason=reason,
        moved=cycle.moved,
        dataset=cycle.config.name,
        dataset_sha256=cycle.dataset_sha256,
        points=proposed.points,
        in_train=proposed.in_train,
        proposal=proposed.hash,
        proposed=proposed.size,
        actions=proposed.actions,
        struck=proposed.struck,
        removed=done_with.get("remove", 0),
        relabeled=done_with.get("relabel", 0),
        restored=done_with.get("restore", 0),
        blocks=described(done.scored.blocks),
        probe="" if done.scored.probe is None else done.scored.probe.verdict(named(cycle.config)),
        fragility=warning(cycle.config, workload),
        patterns=patterns(slices),
        candidates=proposed.candidates,
        dropped={name: count for name, count in proposed.dropped.items() if count},
        known_errors=_known_errors(cycle, workload, points),
        arms=done.verdict.arms if done.verdict else {},
        checks=done.verdict.checks if done.verdict else (),
        proof=_proof(done),
        preview=_previewed(done),
        foreseen=done.preview.against(done.retrained),
        savings=_savings(cycle, done),
        forecast=compare(cycle, done.trained, done.scored, done.retrained),
        champion=concluded.champion if concluded else None,
        report=cycle.folder / "report.html",
        next_commands=_commands(cycle, state, proposed),
        tag=done.reviewed.tag if done.reviewed else "",
        page=cycle.tracker.page(cycle.run),
    )


def _open_reason(cycle: Cycle, proposed: Proposed, reviewed: Reviewed | None) -> str:
    if not proposed.size:
        return "no point is a candidate within the budgets"
    waits = f"{proposed.size} points wait for `tamis approve` or `tamis reject`"
    if reviewed is not None and reviewed.said:
        waits = f"{waits}: {reviewed.said}"
    refused = refusal(cycle)
    return f"{waits}, but an approval would be undone: {refused}" if refused else waits


def _known_errors(cycle: Cycle, workload: Workload, points: Collection[PointId]) -> KnownErrors | None:
    truth = getattr(workload, "truth", None)
    if truth is None or not has_classes(workload):
        return None
    true = truth()
    view = cycle.manifest.view(cycle.removed, cycle.relabeled)
    current = list(zip(view.ids, view.table["label"].to_pylist()))
    wrong = torch.tensor([true.get(point, label) != label for point, label in current])
    found = torch.tensor([point in points for point, _ in current])
    rates = precision_recall(found, wrong)
    total = int(wrong.sum())
    return KnownErrors(
        total, int((wrong & found).sum()), rates.precision if points else None, rates.recall if total else None
    )


def _savings(cycle: Cycle, done: Progression) -> Savings | None:
    if not done.proposed.size or (done.concluded is not None and done.concluded.state != "promoted"):
        return None
    return savings(cycle, done.trained, done.scored, done.preview, done.retrained)


def _previewed(done: Progression) -> str:
    """What the preview took, or why there is none."""
    preview, scored = done.preview, done.scored.spent
    if preview.spent is None:
        return preview.skipped
    of = (
        ""
        if scored is None or not scored.anew
        else f", {preview.spent.cpu_seconds / scored.cpu_seconds:.2f} of scoring"
    )
    return f"{preview.spent.cpu_seconds:,.1f} CPU s{of}"


def _proof(done: Progression) -> str:
    """How far the proof went, for people; nothing before there is one."""
    if done.verdict is None or not done.verdict.looks:
        return ""
    verdict, spent = done.verdict, done.retrained.spent if done.retrained else None
    alone = "challenger" in verdict.arms and "control" not in verdict.arms
    back = "; points only come back, so no random control was trained" if alone else ""
    cost = f"; {spent.cpu_seconds:,.1f} CPU s of training" if spent is not None and spent.anew else ""
    return f"{verdict.seeds} seeds, {verdict.stopped}; look {verdict.looks} at this holdout set{back}{cost}"


def _commands(cycle: Cycle, state: str, proposed: Proposed) -> tuple[str, ...]:
    toml = shlex.quote(str(cycle.config.file))
    commands = [] if cycle.config.servers.mlflow else [f"tamis ui {toml}"]
    if state == "awaiting_review":
        commands = [
            f"tamis approve {proposed.hash[:12]} --by NAME --file {toml}",
            f"tamis reject {proposed.hash[:12]} --by NAME --file {toml}",
            f"tamis run {toml}",
            *commands,
        ]
    elif state == "proposed":
        commands = [f"tamis run {toml}", *commands]
    return tuple(commands)
