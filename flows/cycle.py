"""One curation cycle: train, score, propose, preview, review, apply, retrain, judge, conclude, publish, close.

Every stage is a plain function that does its work once and is read back when the cycle is run again, so this file is
also the way a cycle continues after a crash or an approval. `step` is how a stage is called: plainly, or as a Prefect
task (flows/orchestration.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import ParamSpec, Protocol, TypeVar

from flows.conclusion import apply, close, conclude
from flows.config import Config
from flows.guardrail import judge
from flows.launch import Progress
from flows.logs import phases_logged, stage_logged
from flows.opening import open_cycle
from flows.preview import preview
from flows.pruning import propose
from flows.publication import publish
from flows.redaction import secrets_in
from flows.retraining import retrain
from flows.review import review
from flows.scoring import Scored, score
from flows.stages import Cycle
from flows.summary import Progression, Summary
from flows.training import Trained, train
from flows.workload import Workload
from storage.errors import StaleApproval
from storage.system_metrics import watched

P = ParamSpec("P")
R = TypeVar("R")


class Step(Protocol):
    """How a stage is called."""

    def __call__(self, stage: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the stage."""
        ...


def plainly(stage: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a stage as the function it is."""
    return stage(*args, **kwargs)


def run_cycle(
    config: Config, workload: Workload, step: Step, show: Callable[[Progress], None], *, dry_run: bool = False
) -> Summary:
    """Continue the unfinished cycle, else open the next.

    Args:
        config: The settings.
        workload: Already checked.
        step: How stages are called.
        show: Shows progress.
        dry_run: Stop at the proposal; the next run continues from there.

    Raises:
        BadInput: Something given cannot be used.
        StageFailed: A stage broke; the cycle stays open, and the next run continues it.
    """
    secrets = secrets_in(config.model_dump(mode="json", by_alias=True))
    number: int | None = None

    def told(stage: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        return step(stage_logged(stage, number, secrets), *args, **kwargs)

    cycle = told(open_cycle, config, workload, phases_logged(show))
    number = cycle.number
    try:
        with watched(cycle.tracker.uri, cycle.run):
            return _turn(cycle, workload, told, dry_run)
    except Exception as error:
        cycle.record_failure(f"{type(error).__name__}: {error}")
        cycle.tracker.finish(cycle.run, failed=True)
        raise


def _offered(cycle: Cycle, trained: Trained, scored: Scored, step: Step) -> Progression:
    """The proposal as reviewers have left it, and what it is foretold to do."""
    proposed = step(propose, cycle, scored)
    return Progression(trained, scored, proposed, step(preview, cycle, trained, scored, proposed))


def _turn(cycle: Cycle, workload: Workload, step: Step, dry_run: bool) -> Summary:
    trained = step(train, cycle)
    scored = step(score, cycle, trained)
    done = _offered(cycle, trained, scored, step)
    if dry_run:
        return step(publish, cycle, workload, done)
    proposed = done.proposed
    if proposed.size:
        try:
            reviewed = step(review, cycle, trained, proposed)
        except StaleApproval:  # a reviewer struck points out of it meanwhile: what is left is read back
            done = _offered(cycle, trained, scored, step)
            proposed = done.proposed
            reviewed = step(review, cycle, trained, proposed)
        done = replace(done, reviewed=reviewed)
        if reviewed.decision == "awaiting":
            return step(publish, cycle, workload, done)
        if reviewed.decision == "approve":
            step(apply, cycle, trained, scored, proposed)
        else:
            proposed = replace(proposed, approved_size=0)
    retrained = step(retrain, cycle, trained, proposed)
    verdict = step(judge, cycle, proposed, retrained)
    while not verdict.stopped:
        retrained = step(retrain, cycle, trained, proposed, retrained)
        verdict = step(judge, cycle, proposed, retrained)
    concluded = step(conclude, cycle, proposed, done.reviewed, retrained, verdict)
    done = replace(done, retrained=retrained, verdict=verdict, concluded=concluded)
    summary = step(publish, cycle, workload, done)
    step(close, cycle, verdict, concluded)  # the last write: a cycle that ends has been published
    return summary
