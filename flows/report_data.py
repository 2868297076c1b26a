"""What the report of a cycle shows, gathered from its stages, its scores and the workload."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from flows.limits import given_labels
from flows.report_changes import changes_since
from flows.report_points import Samples, details, proposed_points, suspicious
from flows.stages import Cycle
from flows.summary import Progression, Summary
from flows.workload import Workload
from storage import score_store
from storage.figures import FATES, arm_comparison, quadrant, score_histogram, slice_sums
from storage.proposals import Proposal
from storage.report import ReportData
from storage.report_parts import Arm, Check, Confusion, Interval, Policy, Slice, Tally

MEANINGS: Mapping[str, str] = {
    "harmful": "points whose removal lowers the mean query loss, beyond the error and the spread among the queries",
    "mislabeled": "points whose label is probably wrong, by models and neighbours that never saw it",
    "memorized": "points that the model has learned by heart without gain for the queries",
    "redundant": "points that change next to nothing if they go",
    "balanced": "points whose effects cancel if they go together",
    "regret": "points removed earlier that would now help",
}
DRAWN = 20_000
"""Points of each fate in the scatter plot, at most."""
SLICES, DRAWN_SLICES = 30, 12
"""In the table and in the figure."""
GOES = {"remove": "to remove", "relabel": "to relabel", "restore": "to restore"}


def report_data(
    cycle: Cycle,
    workload: Workload,
    summary: Summary,
    done: Progression,
    proposal: Proposal,
    slices: Sequence[Slice],
) -> ReportData:
    """Put together all that the report shows; of the slices, the most harmful first, those at the head."""
    folder, samples = done.scored.folder, Samples.of(workload, done.preview)
    points = proposed_points(folder, proposal, given_labels(cycle.manifest, cycle.relabeled), cycle.manifest.table)
    shown, queries = details(folder, points, samples)
    scores = _scores(cycle, done, points)
    arms = _arms(summary, done, points)
    return ReportData(
        cycle=cycle.number,
        dataset=summary.dataset,
        dataset_sha256=summary.dataset_sha256,
        proposal=summary.proposal,
        state=summary.state,
        decision=summary.decision,
        in_train=summary.in_train,
        points=points,
        details=shown,
        queries=queries,
        policies=_policies(summary, proposal),
        trust=_trust(summary, done, points),
        changes=({"the data": summary.moved} if summary.moved else {}) | changes_since(cycle, proposal, folder),
        foretold={one.method: one.said for one in summary.foreseen},
        costs=_costs(summary, done),
        facts=_facts(summary, done),
        classes=_tallies(scores, "label"),
        groups=_tallies(scores, "group"),
        slices=slices[:SLICES],
        tested=len(slices),
        confusion=_confusion(points),
        arms=arms,
        checks=[Check(check.name, check.mean, check.said, check.passed) for check in summary.checks],
        suspicious=suspicious(folder, proposal, samples),
        commands=summary.next_commands,
        tag=summary.tag,
        figures=_figures(scores, points, arms, slices[:DRAWN_SLICES]),
    )


def _scores(cycle: Cycle, done: Progression, points: pa.Table) -> pa.Table:
    """Of every point in training or proposed: what the counts and figures read, with its fate."""
    table = score_store.read(done.scored.folder, ["in_train", "label", "influence", "self_influence", "posterior"])
    table = table.append_column("group", cycle.manifest.table["group"])  # both hold every point, by point_id
    place = pc.index_in(table["point_id"], value_set=points["point_id"].combine_chunks())
    action = points["action"].combine_chunks().take(place.combine_chunks())
    fates = [GOES[one] if one else "stays" for one in action.to_pylist()]
    table = table.append_column("fate", pa.array(fates, pa.string()))
    return table.filter(pc.or_(table["in_train"], pc.not_equal(table["fate"], "stays")))


def _policies(summary: Summary, proposal: Proposal) -> list[Policy]:
    rules: Any = proposal.policy["rules"]
    set_to: dict[str, Mapping[str, Any]] = {rule["policy"]: rule["parameters"] for rule in rules}
    proposed = Counter(name for names in proposal.rows["policies"].to_pylist() for name in names)
    return [
        Policy(
            name=name,
            meaning=MEANINGS.get(name, ""),
            parameters=", ".join(f"{key} = {value}" for key, value in set_to.get(name, {}).items()),
            candidates=summary.candidates.get(name, proposed[name]),
            proposed=proposed[name],
        )
        for name in dict.fromkeys([*summary.candidates, *sorted(proposed)])
    ]


def _trust(summary: Summary, done: Progression, points: pa.Table) -> dict[str, str]:
    facts, rate = dict[str, str](), done.scored.estimator["noise_rate"]
    if rate is not None:
        facts["labels that are wrong, estimated"] = f"{rate:.1%} of the points in training"
    wrong = points.filter(_named(points, "mislabeled"))
    if wrong.num_rows:
        mean = pc.mean(wrong["posterior"]).as_py()
        facts["label wrong, mean probability of those proposed as mislabeled"] = f"{mean:.3f}"
    facts |= {name: said for name in ("probe", "fragility") if (said := getattr(summary, name))}
    if summary.known_errors is not None:
        known = summary.known_errors
        facts["known errors in the set"] = f"{known.total:,}, of which {known.found:,} are proposed"
    return facts


def _costs(summary: Summary, done: Progression) -> dict[str, str]:
    facts = {row.what: row.said for row in summary.forecast}
    if summary.preview:
        facts["preview of the challenger"] = summary.preview
    if summary.proof:
        facts["proof"] = summary.proof
    if summary.savings is not None:
        facts["next training saves"] = summary.savings.said
    return facts


def _facts(summary: Summary, done: Progression) -> dict[str, str]:
    estimator = done.scored.estimator
    return {
        "points scored": f"{summary.points:,}",
        "in training": f"{summary.in_train:,}",
        **{f"left out, budget {name}": f"{count:,}" for name, count in summary.dropped.items()},
        **({"struck out in review": f"{summary.struck:,}"} if summary.struck else {}),
        "estimator": str(estimator["estimator"]),
        "blocks": summary.blocks,
        "damping": ", ".join(f"{block}: {value:.4g}" for block, value in estimator["damping"].items()),
    }


def _tallies(scores: pa.Table, by: str) -> list[Tally]:
    """By class or group, in their order; none where points have no such thing."""
    named = scores.filter(pc.is_valid(scores[by]))
    counts = named.group_by([by, "fate", "in_train"]).aggregate([([], "count_all")]).to_pylist()
    found = dict[Any, Counter[str]]()
    for row in counts:
        one = found.setdefault(row[by], Counter())
        one[row["fate"]] += row["count_all"]
        one["given"] += row["count_all"] * row["in_train"]
    tallies = {
        name: Tally(str(name), one["given"], *(one[fate] for fate in GOES.values())) for name, one in found.items()
    }
    return [tallies[name] for name in sorted(tallies)]


def _confusion(points: pa.Table) -> Confusion | None:
    differ = points.filter(pc.not_equal(points["label"], points["suggested_label"]))
    pairs = zip(differ["label"].to_pylist(), differ["suggested_label"].to_pylist())
    return Confusion.of(Counter((str(given), str(suggested)) for given, suggested in pairs))


def _arms(summary: Summary, done: Progression, points: pa.Table) -> list[Arm]:
    actions = Counter(points["action"].to_pylist())
    fewer = {
        "challenger": actions["remove"] - actions["restore"],
        "control": actions["remove"] + actions["relabel"],
    }
    return [
        Arm(
            name=arm,
            points=summary.in_train - fewer.get(arm, 0),
            steps=done.retrained.steps[arm] if done.retrained else done.trained.steps,
            seeds=outcome.seeds,
            loss=Interval(outcome.loss.mean, outcome.loss.low, outcome.loss.high),
            accuracy=None if hits is None else Interval(hits.mean, hits.low, hits.high),
        )
        for arm, outcome in summary.arms.items()
        for hits in [outcome.accuracy]
    ]


def _figures(scores: pa.Table, points: pa.Table, arms: list[Arm], slices: Sequence[Slice]) -> dict[str, bytes]:
    fates = {fate: scores.filter(pc.equal(scores["fate"], fate)) for fate in FATES}
    steps = {fate: -(-table.num_rows // DRAWN) for fate, table in fates.items()}
    thinned = "".join(f", every {step}th that {fate}" for fate, step in steps.items() if step > 1)
    pairs = {
        fate: (_values(table, "influence")[:: steps[fate] or 1], _values(table, "self_influence")[:: steps[fate] or 1])
        for fate, table in fates.items()
    }
    harmful, wrong = (points.filter(_named(points, policy)) for policy in ("harmful", "mislabeled"))
    highest = {"largest of the harmful": pc.max(harmful["influence"]).as_py()} if harmful.num_rows else {}
    lowest = {"smallest of the mislabeled": pc.min(wrong["posterior"]).as_py()} if wrong.num_rows else {}
    figures = {
        f"Influence and self-influence, every point by what becomes of it{thinned}": quadrant(pairs),
        "Influence, mean over the query set": score_histogram(
            {fate: _values(table, "influence") for fate, table in fates.items()}, highest, "influence (nats)"
        ),
    }
    if slices:
        figures["Where the harm is, sums over slices with their 95 % intervals; ★ a pattern"] = slice_sums(slices)
    if scores["posterior"].null_count < len(scores):
        figures["Label is wrong, probability by models and neighbours that never saw it"] = score_histogram(
            {fate: _values(table, "posterior") for fate, table in fates.items()}, lowest, "probability"
        )
    if arms:
        figures["Holdout, every arm"] = arm_comparison(arms)
    return figures


def _values(table: pa.Table, name: str) -> NDArray[Any]:
    return np.asarray(table[name].to_numpy(), dtype=float)


def _named(points: pa.Table, policy: str) -> pa.Array:
    """The points that a policy named."""
    return pa.array([policy in names for names in points["policies"].to_pylist()], pa.bool_())
