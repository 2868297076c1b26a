"""What the report of a cycle shows, gathered from its stages, its scores and the workload."""

from __future__ import annotations

from typing import Any

from flows.stages import Cycle
from flows.summary import Progression, Summary
from flows.workload import Workload
from storage import score_store, selection
from storage.figures import arm_comparison, score_histogram
from storage.proposals import Proposal
from storage.report import Arm, Check, Interval, ReportData, ReportPoint

PICTURED = 500
EVIDENCE = ("label", "suggested_label", "influence", "self_influence", "suspicion", "memorization")


def report_data(
    cycle: Cycle, workload: Workload, summary: Summary, done: Progression, proposal: Proposal
) -> ReportData:
    """Put together all that the report shows."""
    arms = _arms(summary, done)
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
        figures=_figures(cycle, done, arms),
    )


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
        **{name: said for name in ("probe", "fragility") if (said := getattr(summary, name))},
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
