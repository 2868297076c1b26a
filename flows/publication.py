"""The stage `publish`: the report a reviewer reads, and what MLflow shows of the cycle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import pyarrow as pa

from flows.guardrail import DIFFERENCES, Check, read_outcome
from flows.printing import visible
from flows.report_data import report_data
from flows.slices import slices_of
from flows.stages import Cycle
from flows.summary import Progression, Summary, summarize_cycle
from flows.workload import Workload
from storage import score_store, selection
from storage.files import atomic_write_text
from storage.proposals import Proposal
from storage.report import render
from storage.report_parts import Slice
from storage.tracking import Tracker

MOST = 1000


def publish(cycle: Cycle, workload: Workload, done: Progression) -> Summary:
    """Write the report, log the cycle to MLflow, and give the summary."""
    proposal = Proposal.read(cycle.folder)
    slices = slices_of(workload, done.scored, proposal)
    summary = summarize_cycle(cycle, workload, frozenset(proposal.points), done, slices)
    data = report_data(cycle, workload, summary, done, proposal, slices)
    html = render(data)
    atomic_write_text(summary.report, html)
    tracker, run = cycle.tracker, cycle.run
    _log_scores(tracker, run, done)
    if slices:
        tracker.log_table(run, "slices", _table(slices[:MOST]))
    for title, png in data.figures.items():
        tracker.log_figure(run, title.split(",")[0].lower().replace(" ", "_"), png)
    tracker.log_report(run, html)
    tracker.log_metrics(run, _metrics(summary, done))
    spent = "" if done.scored.spent is None else f"\n\n{done.scored.spent.said(done.scored.rows)}"
    tracker.describe(run, describe(summary) + spent)
    _log_arms(cycle, done)
    tracker.anchor(run, cycle.ledger.head())
    if done.concluded is not None:
        tracker.finish(run)
    return summary


def _log_scores(tracker: Tracker, run: str, done: Progression) -> None:
    scores = score_store.load(done.scored.folder)
    if scores is not None:
        tracker.log_scores(run, scores)
    columns = [
        "point_id",
        "in_train",
        "label",
        "suggested_label",
        "suspicion",
        "posterior",
        "influence",
        "influence_se",
    ]
    if done.scored.classes:
        tracker.log_table(run, "suspicious", selection.top(done.scored.folder, "suspicion", MOST, columns=columns))


def _table(slices: Sequence[Slice]) -> pa.Table:
    rows = [asdict(one) for one in slices]
    return pa.Table.from_pylist(
        [
            row | {f"total_{end}": row["total"][end] for end in ("low", "high")} | {"total": row["total"]["mean"]}
            for row in rows
        ]
    )


def _log_arms(cycle: Cycle, done: Progression) -> None:
    if done.retrained is None:
        return
    for arm, folders in done.retrained.folders.items():
        outcome = read_outcome(folders)
        measured = {"holdout_loss": outcome.loss.mean(1).tolist()}  # [S]
        if outcome.correct is not None:
            measured["holdout_accuracy"] = outcome.correct.mean(1).tolist()
        for place, seed in enumerate(done.retrained.seeds):
            metrics = {name: values[place] for name, values in measured.items()}
            cycle.tracker.arm_run(cycle.run, arm, seed, {"steps": done.retrained.steps[arm]}, metrics)


def _metrics(summary: Summary, done: Progression) -> dict[str, float]:
    metrics: dict[str, float] = {"points": summary.points, "proposed": summary.proposed, "removed": summary.removed}
    if done.scored.blocks.energy is not None:
        metrics["blocks_energy"] = done.scored.blocks.energy
    if done.scored.probe is not None:
        metrics |= done.scored.probe.metrics
    for arm, outcome in summary.arms.items():
        metrics[f"holdout_loss_{arm}"] = outcome.loss.mean
        if outcome.accuracy is not None:
            metrics[f"holdout_accuracy_{arm}"] = outcome.accuracy.mean
    if summary.known_errors is not None and summary.known_errors.precision is not None:
        metrics["precision"] = summary.known_errors.precision
    if summary.known_errors is not None and summary.known_errors.recall is not None:
        metrics["recall"] = summary.known_errors.recall
    return metrics


def _told(summary: Summary) -> list[Check]:
    """The differences, and of classes and groups those that are worse, or else the one that is most nearly so."""
    slices = sorted((one for one in summary.checks if one.name not in DIFFERENCES), key=lambda one: one.bound)
    worse = [check for check in slices if not check.passed]
    return [*(one for one in summary.checks if one.name in DIFFERENCES), *(worse or slices[:1])]


def describe(summary: Summary) -> str:
    """The Markdown at the head of the MLflow run: what was decided and why, and what a person can do."""
    lines = [
        f"**Cycle {summary.cycle}: {summary.state.replace('_', ' ')}.** {summary.decision}.",
        "",
        f"{summary.points:,} points scored, {summary.proposed:,} proposed "
        f"({', '.join(f'{count:,} {policy}' for policy, count in summary.candidates.items())}), "
        f"{', '.join(f'{count:,} {word}' for word, count in summary.changed.items())}"
        f"{f', {summary.struck:,} struck out in review' if summary.struck else ''}. "
        f"Proposal `{summary.proposal[:12]}`.",
        "",
        f"Influence on {summary.blocks}. {summary.probe} {summary.fragility}".rstrip(),
        "",
        *([f"The data {summary.moved}.", ""] if summary.moved else []),
        *([f"Where the harm is: {visible('; '.join(summary.patterns))}.", ""] if summary.patterns else []),
        "The report is under Artifacts, `review/00_report.html`.",
    ]
    if summary.state == "awaiting_review":
        tag = f"set the tag `tamis.review`, here or on the page of this run's model version, to `{summary.tag}` (or "
        tag += "`reject:…`); the cycle goes on when it is run again, which `tamis serve` does by itself. Or "
        lines += [
            "",
            f"To approve, {tag if summary.tag else ''}use the form of the Prefect deployment "
            f"`tamis-review/approve-{summary.dataset}`, or the command line, where `--strike ID` leaves points out:",
            *[f"    {command}" for command in summary.next_commands],
        ]
    for arm, outcome in summary.arms.items():
        loss, accuracy = outcome.loss, outcome.accuracy
        hits = "" if accuracy is None else f"accuracy {accuracy.mean:.4f} [{accuracy.low:.4f}, {accuracy.high:.4f}], "
        lines += [
            f"- {arm}: holdout {hits}loss {loss.mean:.4f} [{loss.low:.4f}, {loss.high:.4f}] nats, {outcome.seeds} seeds"
        ]
    lines += [f"- {check.name}: {check.mean:+.4f} nats, {check.said}" for check in _told(summary)]
    lines += [f"- query set, foretold by the {one.method}: {one.said}" for one in summary.foreseen]
    lines += [f"- proof: {summary.proof}"] if summary.proof else []
    lines += [f"- preview: {summary.preview}"] if summary.preview else []
    lines += [f"- next training saves {summary.savings.said}"] if summary.savings else []
    lines += [f"- {row.what}: {row.said}" for row in summary.forecast]
    return "\n".join(lines)
