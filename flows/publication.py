"""The stage `publish`: the report a reviewer reads, and what MLflow shows of the cycle."""

from __future__ import annotations

from typing import Any

from flows.guardrail import read_outcome
from flows.stages import Cycle
from flows.summary import Progression, Summary, summarize_cycle
from flows.workload import Workload
from storage import score_store, selection
from storage.figures import arm_comparison, score_histogram
from storage.files import atomic_write_text
from storage.proposals import Proposal
from storage.report import Arm, Check, Interval, ReportData, ReportPoint, render
from storage.tracking import Tracker

SUSPICIOUS = 1000
PICTURED = 500
EVIDENCE = ("label", "suggested_label", "influence", "self_influence", "suspicion", "memorization")


def publish(cycle: Cycle, workload: Workload, done: Progression) -> Summary:
    """Write the report, log the cycle to MLflow, and give the summary."""
    proposal = Proposal.read(cycle.folder)
    summary = summarize_cycle(cycle, workload, frozenset(proposal.points), done)
    arms = _arms(summary, done)
    figures = _figures(cycle, done, arms)
    html = render(_report(cycle, workload, summary, done, proposal, arms, figures))
    atomic_write_text(summary.report, html)
    tracker, run = cycle.tracker, cycle.run
    _log_scores(tracker, run, done)
    for title, png in figures.items():
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
    tracker.log_suspicious(run, selection.top(done.scored.folder, "suspicion", SUSPICIOUS, columns=columns))


def _log_arms(cycle: Cycle, done: Progression) -> None:
    if done.retrained is None:
        return
    for arm, folders in done.retrained.folders.items():
        outcome = read_outcome(folders)
        losses, accuracies = outcome.loss.mean(1).tolist(), outcome.correct.mean(1).tolist()  # [S]
        for seed, loss, accuracy in zip(done.retrained.seeds, losses, accuracies):
            metrics = {"holdout_loss": loss, "holdout_accuracy": accuracy}
            cycle.tracker.arm_run(cycle.run, arm, seed, {"steps": done.trained.steps}, metrics)


def _metrics(summary: Summary, done: Progression) -> dict[str, float]:
    metrics: dict[str, float] = {"points": summary.points, "proposed": summary.proposed, "removed": summary.removed}
    if done.scored.blocks.energy is not None:
        metrics["blocks_energy"] = done.scored.blocks.energy
    if done.scored.probe is not None:
        metrics |= done.scored.probe.metrics
    for arm, outcome in summary.arms.items():
        metrics[f"holdout_loss_{arm}"] = outcome.loss.mean
        metrics[f"holdout_accuracy_{arm}"] = outcome.accuracy.mean
    if summary.known_errors is not None and summary.known_errors.precision is not None:
        metrics["precision"] = summary.known_errors.precision
    if summary.known_errors is not None and summary.known_errors.recall is not None:
        metrics["recall"] = summary.known_errors.recall
    return metrics


def describe(summary: Summary) -> str:
    """The Markdown at the head of the MLflow run: what was decided and why, and what a person can do."""
    lines = [
        f"**Cycle {summary.cycle}: {summary.state.replace('_', ' ')}.** {summary.decision}.",
        "",
        f"{summary.points:,} points scored, {summary.proposed:,} proposed "
        f"({', '.join(f'{count:,} {policy}' for policy, count in summary.candidates.items())}), "
        f"{summary.removed:,} removed. Proposal `{summary.proposal[:12]}`.",
        "",
        f"Influence on {summary.blocks}. {summary.probe} {summary.fragility}".rstrip(),
        "",
        *([f"The data {summary.moved}.", ""] if summary.moved else []),
        "The report is under Artifacts, `review/00_report.html`.",
    ]
    if summary.state == "awaiting_review":
        lines += [
            "",
            f"To approve: set the tag `tamis.review` of this run to `approve:{summary.proposal[:12]}` "
            f"(or `reject:…`) and run the cycle again, or use the command line:",
            *[f"    {command}" for command in summary.next_commands],
        ]
    for arm, outcome in summary.arms.items():
        loss, accuracy = outcome.loss, outcome.accuracy
        lines += [
            f"- {arm}: holdout accuracy {accuracy.mean:.4f} [{accuracy.low:.4f}, {accuracy.high:.4f}], "
            f"loss {loss.mean:.4f} [{loss.low:.4f}, {loss.high:.4f}] nats, {outcome.seeds} seeds"
        ]
    lines += [f"- {row.what}: {row.said}" for row in summary.forecast]
    return "\n".join(lines)


def _arms(summary: Summary, done: Progression) -> list[Arm]:
    return [
        Arm(
            name=arm,
            points=summary.in_train - (0 if arm == "baseline" else summary.proposed),
            steps=done.trained.steps,
            seeds=outcome.seeds,
            loss=Interval(outcome.loss.mean, outcome.loss.low, outcome.loss.high),
            accuracy=Interval(outcome.accuracy.mean, outcome.accuracy.low, outcome.accuracy.high),
        )
        for arm, outcome in summary.arms.items()
    ]


def _figures(cycle: Cycle, done: Progression, arms: list[Arm]) -> dict[str, bytes]:
    table = score_store.read(done.scored.folder, ["influence", "posterior", "in_train"])
    table = table.filter(table["in_train"])
    influence = table["influence"].to_numpy()
    figures = {
        "Influence, mean over the query set": score_histogram(influence, {}, "influence (nats, positive = helpful)"),
        "Posterior that the label is wrong": score_histogram(
            table["posterior"].to_numpy(), {}, "posterior that the given label is wrong"
        ),
    }
    if arms:
        figures["Holdout, every arm"] = arm_comparison(arms)
    return figures


def _report(
    cycle: Cycle,
    workload: Workload,
    summary: Summary,
    done: Progression,
    proposal: Proposal,
    arms: list[Arm],
    figures: dict[str, bytes],
) -> ReportData:
    return ReportData(
        cycle=cycle.number,
        dataset=summary.dataset,
        dataset_sha256=summary.dataset_sha256,
        proposal=summary.proposal,
        state=summary.state,
        decision=summary.decision,
        proposed=summary.proposed,
        summary=_facts(summary, done),
        arms=arms,
        checks=[Check(check.name, check.bound, check.limit, check.passed) for check in summary.checks],
        points=_points(cycle, workload, done, proposal),
        commands=summary.next_commands,
        figures=figures,
    )


def _facts(summary: Summary, done: Progression) -> dict[str, str]:
    estimator = done.scored.estimator
    facts = {
        "points scored": f"{summary.points:,}",
        "in training": f"{summary.in_train:,}",
        "proposed": f"{summary.proposed:,}",
        **{f"candidates, {policy}": f"{count:,}" for policy, count in summary.candidates.items()},
        **{f"left out, budget {name}": f"{count:,}" for name, count in summary.dropped.items()},
        "estimator": str(estimator["estimator"]),
        "blocks": summary.blocks,
        **{name: said for name in ("moved", "probe", "fragility") if (said := getattr(summary, name))},
        "damping": ", ".join(f"{block}: {value:.4g}" for block, value in estimator["damping"].items()),
        "estimated noise rate": f"{estimator['noise_rate']:.3f}",
    }
    if summary.known_errors is not None:
        known = summary.known_errors
        facts["known errors in the set"] = f"{known.total:,}, of which {known.found:,} proposed"
    return facts | {row.what: row.said for row in summary.forecast}


def _points(cycle: Cycle, workload: Workload, done: Progression, proposal: Proposal) -> list[ReportPoint]:
    rows = proposal.rows.sort_by("rank").slice(0, PICTURED).to_pylist()
    found = selection.rows_of(done.scored.folder, [row["point_id"] for row in rows], ["point_id", *EVIDENCE])
    evidence = {row["point_id"]: row for row in found.to_pylist()}
    return [_point(workload, row, evidence[row["point_id"]]) for row in rows]


def _point(workload: Workload, row: dict[str, Any], score: dict[str, Any]) -> ReportPoint:
    describe_point = getattr(workload, "describe", None)
    shown: object = describe_point(row["point_id"]) if describe_point else ""
    return ReportPoint(
        point_id=row["point_id"],
        reason=row["reason"],
        score=row["score"],
        threshold=row["threshold"],
        label=str(score["label"]),
        suggested_label=str(score["suggested_label"]),
        influence=score["influence"],
        self_influence=score["self_influence"],
        suspicion=score["suspicion"],
        memorization=score["memorization"],
        text=shown if isinstance(shown, str) else "",
        png=shown if isinstance(shown, bytes) else None,
    )
