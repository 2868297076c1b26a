"""What the commands print: tables for people, JSON for scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.markup import escape
from rich.table import Table

from flows.anew import Retrained
from flows.bounds import Estimate
from flows.estimators import Estimator
from flows.export import Exported
from flows.inspection import Status
from flows.printing import console, visible, write_json
from flows.retention import Collected
from flows.score_file import ScoredFile
from flows.sections.scoring import EstimatorName
from flows.summary import Summary
from flows.validation.results import Row, Study, Validation


def print_summary(summary: Summary, *, as_json: bool) -> None:
    """The end of a cycle: what was scored, proposed and removed, and what the holdout set says."""
    if as_json:
        write_json(summary)
        return
    out = console()
    out.print(f"[bold]Cycle {summary.cycle}: {summary.state.replace('_', ' ')}[/bold] - {_plain(summary.decision)}")
    facts = Table(show_header=False, box=None, pad_edge=False)
    for name, value in _facts(summary).items():
        facts.add_row(name, _plain(value))
    out.print(facts)
    if summary.arms:
        out.print(_arms(summary))
    for command in summary.next_commands:
        out.print(f"  {command}", soft_wrap=True, highlight=False)


def _facts(summary: Summary) -> dict[str, str]:
    named = ", ".join(f"{policy} {count:,}" for policy, count in summary.candidates.items())
    facts = {
        "points scored": f"{summary.points:,} ({summary.in_train:,} in training)",
        "proposed": f"{summary.proposed:,} (candidates: {named})",
        **{word: f"{count:,}" for word, count in summary.changed.items()},
    }
    if summary.moved:
        facts["data"] = summary.moved
    facts["blocks"] = summary.blocks
    if summary.probe:
        facts["probe"] = summary.probe
    if summary.fragility:
        facts["fragility"] = summary.fragility
    if summary.patterns:
        facts["where the harm is"] = "; ".join(summary.patterns)
    if summary.dropped:
        facts["left out by budget"] = ", ".join(f"{name} {count:,}" for name, count in summary.dropped.items())
    if (known := summary.known_errors) is not None:
        rates = f"precision {_rate(known.precision)}, recall {_rate(known.recall)}"
        facts["known errors"] = f"{known.total:,} in the set, {known.found:,} proposed ({rates})"
    if summary.struck:
        facts["struck out in review"] = f"{summary.struck:,}"
    for one in summary.foreseen:
        facts[f"foretold, {one.method}"] = one.said
    if summary.proof:
        facts["proof"] = summary.proof
    if summary.savings is not None:
        facts["next training saves"] = summary.savings.said
    if summary.forecast:
        facts["foretold"] = "; ".join(f"{row.what} {row.said}" for row in summary.forecast)
    facts["proposal"] = summary.proposal[:12]
    facts["champion"] = f"version {summary.champion}" if summary.champion else "none yet"
    facts["report"] = str(summary.report)
    if summary.page:
        facts["MLflow"] = summary.page
    return facts


def _arms(summary: Summary) -> Table:
    table = Table(title="Holdout set: mean over seeds [95 % interval over points and seeds]", title_justify="left")
    accurate = all(outcome.accuracy is not None for outcome in summary.arms.values())
    for column in ("arm", "seeds", *["accuracy"] * accurate, "loss (nats)"):
        table.add_column(column)
    for arm, outcome in summary.arms.items():
        hits = [] if outcome.accuracy is None else [_estimate(outcome.accuracy)]
        table.add_row(arm, str(outcome.seeds), *hits, _estimate(outcome.loss))
    return table


def print_collected(collected: Collected, *, as_json: bool) -> None:
    """What `tamis gc` removed, or would."""
    if as_json:
        write_json(collected)
        return
    for one in collected.gone:
        print(f"{one.bytes / 1e6:10,.1f} MB  {one.path}")
    for run in collected.runs:
        print(f"MLflow run {run}: ended as failed")
    total = sum(one.bytes for one in collected.gone)
    print(f"{total / 1e6:,.1f} MB {'would be' if collected.dry_run else 'were'} freed")


def print_estimators(estimators: Mapping[EstimatorName, Estimator], *, as_json: bool) -> None:
    """What `scoring.estimator` may be, the default first."""
    said = ("exactness", "cost", "memory", "use")
    rows = [{"name": name} | {key: getattr(one, key) for key in said} for name, one in estimators.items()]
    if as_json:
        write_json(rows)
        return
    table = Table("name", *said, box=None, pad_edge=False, padding=(0, 2, 1, 0))
    for row in rows:
        table.add_row(*row.values())
    console().print(table)


def print_scored(scored: ScoredFile, *, as_json: bool) -> None:
    """What `tamis score` wrote."""
    if as_json:
        write_json(scored)
        return
    print(f"{scored.file}: {scored.points:,} points scored on {scored.queries:,} queries")
    print(f"blocks: {scored.blocks}")
    damping = ", ".join(f"{one:.4g}" for one in sorted(set(scored.damping.values())))
    print(f"estimator: {scored.estimator}, damping {damping}")
    if scored.probe:
        print(f"probe: {scored.probe}")
    for what in scored.left_out:
        print(f"left out: {what}")


def print_retrained(retrained: Retrained, *, as_json: bool) -> None:
    """What `tamis retrain` came to."""
    if as_json:
        write_json(retrained)
        return
    became = "the model is champion, as" if retrained.promoted else "the champion stays"
    print(
        f"trained on the {retrained.points:,} points as of cycle {retrained.cycle}; {became} version "
        f"{retrained.champion}: {retrained.reason}"
    )


def print_export(exported: Exported, *, as_json: bool) -> None:
    """What `tamis export` wrote."""
    if as_json:
        write_json(exported)
        return
    export = exported.export
    print(
        f"{exported.folder}: {export.points:,} points as of cycle {export.cycle}: {export.kept:,} kept "
        f"({export.relabeled:,} relabelled), {export.removed:,} removed"
    )
    recorded = "no cycle has started from it" if export.recorded_by is None else f"as cycle {export.recorded_by} has it"
    print(f"dataset_sha256 {export.dataset_sha256} ({recorded})")
    if export.mask_bits is None:
        print("no bit mask: ids are not dense integers")


def print_status(status: Status, *, as_json: bool) -> None:
    """Where the newest cycle stands."""
    if as_json:
        write_json(status)
        return
    print(f"workspace {status.workspace}")
    print(f"cycle {status.cycle}: {status.state.replace('_', ' ')}" if status.cycle else status.state)
    if status.proposal:
        print(f"proposal {status.proposal[:12]}: {status.proposed:,} points")
    if status.review:
        print(f"review: {status.review}")
    print(f"removed in all: {status.removed:,}")
    print(f"next: {status.next_command}")


def print_validation(validation: Validation, *, as_json: bool) -> None:
    """What was found about the estimator: a table for each study."""
    if as_json:
        write_json(validation)
        return
    out = console()
    out.print(
        f"[bold]{validation.estimator}[/bold] on {validation.dataset}: {validation.points:,} points, "
        f"{validation.queries:,} queries; value \\[95 % interval, or what the study says]"
    )
    for study in validation.studies:
        out.print(f"\n[bold]{study.name}[/bold]: {study.protocol}")
        for table in _study_tables(study):
            out.print(table)
    print(f"written to {validation.folder}")


def _study_tables(study: Study) -> list[Table]:
    """One table with a column for each measure; of a pruning curve, one per measure with a column for each share."""
    if all(row.share is None for row in study.rows):
        return [_pivot("signal", [(row.signal, row.measure, row) for row in study.rows])]
    return [
        _pivot(measure, [(row.signal, f"{row.share:.0%}", row) for rows in signals.values() for row in rows])
        for measure, signals in study.by_measure.items()
    ]


def _pivot(corner: str, cells: Sequence[tuple[str, str, Row]]) -> Table:
    columns = list(dict.fromkeys(column for _, column, _ in cells))
    table = Table(corner, *columns, box=None, pad_edge=False)
    for signal in dict.fromkeys(signal for signal, _, _ in cells):
        found = {column: row for name, column, row in cells if name == signal}
        table.add_row(signal, *(_value(found[column]) if column in found else "" for column in columns))
    return table


def _value(row: Row) -> str:
    return f"{row.value:.3f} \\[{row.low:.3f}, {row.high:.3f}]"


def _estimate(estimate: Estimate) -> str:
    return f"{estimate.mean:.4f} \\[{estimate.low:.4f}, {estimate.high:.4f}]"


def _plain(text: str) -> str:
    """A text in which groups and the like, named by the data, are no markup."""
    return escape(visible(text))


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
