"""What a validation leaves: validation.json, a figure for each study, and an MLflow run for each study."""

from __future__ import annotations

from flows.stores import tracker_of
from flows.validation.fragility import Fragility
from flows.validation.results import Row, Study, Validation
from flows.validation.setting import Setting
from storage.files import atomic_write_bytes, sha256_json
from storage.report_parts import Interval
from storage.study_figures import measure_panels, query_strips, removal_curves


def publish(validation: Validation, setting: Setting, fragility: Fragility | None = None) -> None:
    """Write the files and log every study to MLflow; a study that is repeated writes to the run it has."""
    validation.write()
    tracker = tracker_of(setting.config)
    settings = setting.config.model_dump(mode="json", include={"training", "scoring"})
    identity = sha256_json(setting.inputs | settings)
    for study in validation.studies:
        png, metrics = figure(study), study.headline
        if fragility is not None and study.name == "fragility":
            fragility.verdict.write(validation.folder)
            png, metrics = strips(fragility), fragility.verdict.metrics
        atomic_write_bytes(validation.folder / f"{study.name}.png", png)
        size = {"points": validation.points, "queries": validation.queries}
        run = tracker.validation_run(study.name, identity, {"estimator": validation.estimator, **size})
        tracker.log_metrics(run, metrics)
        tracker.log_figure(run, study.name, png)
        tracker.describe(run, markdown(study))
        tracker.finish(run)


def figure(study: Study) -> bytes:
    """The study as a PNG."""
    table = study.by_measure
    if all(row.share is None for row in study.rows):
        return measure_panels(
            {name: {signal: _interval(row) for signal, (row,) in signals.items()} for name, signals in table.items()}
        )
    return removal_curves(
        {
            name: {signal: [(row.share or 0.0, _interval(row)) for row in rows] for signal, rows in signals.items()}
            for name, signals in table.items()
        }
    )


def strips(fragility: Fragility) -> bytes:
    """How far the scores of every query move, as a PNG."""
    panels = {
        measure: {name: one.tolist() for name, one in values.items()} for measure, values in fragility.by_query.items()
    }
    return query_strips(panels, fragility.verdict.bound)


def markdown(study: Study) -> str:
    """The study for the page of its MLflow run."""
    lines = [f"**{study.name}**: {study.protocol}.", "", "| signal | measure | removed | value | low to high |"]
    lines.append("|---|---|---|---|---|")
    for row in study.rows:
        removed = "" if row.share is None else f"{row.share:.0%}"
        interval = f"{row.low:.4f} to {row.high:.4f}"
        lines.append(f"| {row.signal} | {row.measure} | {removed} | {row.value:.4f} | {interval} |")
    return "\n".join(lines)


def _interval(row: Row) -> Interval:
    return Interval(row.value, row.low, row.high)
