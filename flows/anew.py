"""`tamis retrain CYCLE`: a model of the data set as of a cycle, by the recipe of now, judged against the champion.

It is trained and judged as a baseline is, and becomes champion by the rule that a baseline becomes it by: if there is
none, or if the upper bound of its loss against the champion's is below `guardrail.tolerance`. No point is removed or
restored by that. The look at the holdout set counts, as the look of a cycle does. The ledger comes first, then the
alias; a model that was judged against a champion is not judged against it again: what the ledger says is carried out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from flows.check import require
from flows.config import Config, load
from flows.dataset import read_sets
from flows.decision import named
from flows.errors import BadInput
from flows.guardrail import compare, read_outcome
from flows.launch import Progress
from flows.logs import logged, phases_logged, stage_logged
from flows.looks import ALL, looks_before, refusal
from flows.moving import in_force, manifest_of_cycle
from flows.opening import check_champion, digests_of, workspace
from flows.plans import Job
from flows.progress import progress_shown
from flows.redaction import secrets_in
from flows.relabeling import write_labels
from flows.retraining import champion_job
from flows.stages import Cycle
from flows.stores import ledger_of, tracker_of
from flows.training import arm_folder, planned_steps, train_jobs, training_inputs, write_ids
from flows.workload import Workload
from storage import checkpoints
from storage.files import JSON
from storage.ledger import Ledger
from storage.points import Manifest, dataset_sha256
from storage.tracking import ModelVersion

ROLE = "retrained"


@dataclass(frozen=True)
class Retrained:
    """What came of it; `champion` is the version in service now."""

    cycle: int
    points: int
    promoted: bool
    champion: int
    reason: str


def retrain_file(file: Path, number: int, by: str) -> Retrained:
    """Retrain on the data set as of a cycle.

    Args:
        file: The tamis.toml.
        number: The cycle.
        by: Who asked for it.

    Raises:
        BadInput: The cycle is none, or one is open; or the data changed since; or the holdout set is worn out.
        StageFailed: The training broke; the same command continues it.
    """
    config, by = load(file), named(by)
    workload = require(config)
    secrets = secrets_in(config.model_dump(mode="json", by_alias=True))
    with workspace(config), logged(config.workspace, secrets), progress_shown() as show:
        cycle = _as_of(config, workload, number, phases_logged(show))
        return stage_logged(retrain, number, secrets)(cycle, by)


def _as_of(config: Config, workload: Workload, number: int, show: Callable[[Progress], None]) -> Cycle:
    """The data set after a cycle, as what a further model of that cycle is trained on."""
    ledger = ledger_of(config)
    record = ledger.cycle(number)
    unfinished = ledger.unfinished_cycle()
    if unfinished is not None:
        raise BadInput(f"cycle {unfinished.cycle} is not over: end it with `tamis run` first")
    sets = read_sets(workload)
    known = in_force(ledger, number, sets.train)
    digest = dataset_sha256(sets.train, known.removed, known.relabeled)
    if digest != _recorded(config, ledger, number):
        raise BadInput(f"the data changed since cycle {number}: `tamis run` opens a cycle on the data as they are now")
    digests, tracker = digests_of(workload, sets), tracker_of(config)
    check_champion(tracker, config, workload)
    run = record.mlflow_run_id or tracker.cycle_run(number, record.dataset_sha256, {})
    return Cycle(
        config, number, sets.train, known.removed, digest, digests, ledger, tracker, run, show, known.relabeled
    )


def _recorded(config: Config, ledger: Ledger, number: int) -> str:
    train = Manifest.read(manifest_of_cycle(config.workspace, number))
    known = in_force(ledger, number, train)
    return dataset_sha256(train, known.removed, known.relabeled)


def retrain(cycle: Cycle, by: str) -> Retrained:
    """Train, judge and promote; what an earlier call judged is finished, without another look at the holdout set.

    Args:
        cycle: The data set after it.
        by: Who asked for it.
    """
    champion = cycle.tracker.champion(cycle.config.name)
    job = _job(cycle)
    judged = _judged(cycle, job, champion) if job.done else None
    if judged is None:
        if refused := refusal(cycle, by_hand=True):
            raise BadInput(refused)
        judged = _judge(cycle, job, by, champion)
    return _conclude(cycle, job, judged, champion)


def _job(cycle: Cycle) -> Job:
    seed, steps, plans = cycle.config.training.seed, planned_steps(cycle), cycle.folder / "plans"
    return Job(
        role=ROLE,
        seed=seed,
        steps=steps,
        planned=steps,
        stops=cycle.config.training.early_stopping is not None,
        removed=write_ids(plans / f"removed-{ROLE}.parquet", cycle.removed, cycle.manifest),
        relabeled=write_labels(plans / f"relabeled-{ROLE}.parquet", cycle.relabeled, cycle.manifest),
        folder=arm_folder(cycle, ROLE, seed, training_inputs(cycle)),
        save_at=(steps,),
    )


def _judged(cycle: Cycle, job: Job, champion: ModelVersion | None) -> Mapping[str, JSON] | None:
    """What the ledger says of this very model, judged on this holdout set against this champion, or promoted to it."""
    digest = checkpoints.verify(job.last).digest
    serves = champion is not None and champion.digest == digest
    for event in cycle.ledger.log(ALL):
        known = event.state == "judged" and event.key.startswith(f"by hand/{digest}/")
        if known and (event.key == _key(cycle, digest, champion) or (serves and event.detail["promoted"])):
            return event.detail
    return None


def _judge(cycle: Cycle, job: Job, by: str, champion: ModelVersion | None) -> Mapping[str, JSON]:
    against = champion_job(cycle, champion) if champion else None
    train_jobs(cycle, tuple(one for one in (job, against) if one and not one.done), cycle.folder / "logs" / ROLE)
    judged = _judged(cycle, job, champion)  # its files were deleted since
    if judged is not None:
        return judged
    theirs = read_outcome((against.folder,)) if against else None
    verdict = compare({"baseline": read_outcome((job.folder,))}, theirs, cycle.config.guardrail, job.seed)
    arm = verdict.arms["baseline"]
    hits = {} if arm.accuracy is None else {"holdout_accuracy": arm.accuracy.mean}
    _run(cycle, job, {"holdout_loss": arm.loss.mean} | hits)
    digest, promoted = checkpoints.verify(job.last).digest, bool(verdict.promote)
    detail: dict[str, JSON] = {"reason": verdict.reason, "by": by, "checkpoint": digest, "promoted": promoted}
    detail |= {"dataset_sha256": cycle.dataset_sha256, "holdout": cycle.digests["holdout"]}
    detail |= {"look": looks_before(cycle, by_hand=True) + 1}
    cycle.ledger.record_event(cycle.number, "judged", detail=detail, key=_key(cycle, digest, champion))
    return detail


def _key(cycle: Cycle, digest: str, champion: ModelVersion | None) -> str:
    return f"by hand/{digest}/{champion.version if champion else 0}/{cycle.digests['holdout'][:12]}"


def _run(cycle: Cycle, job: Job, metrics: Mapping[str, float]) -> str:
    return cycle.tracker.arm_run(cycle.run, ROLE, job.seed, {"steps": job.ended}, metrics)


def _conclude(cycle: Cycle, job: Job, judged: Mapping[str, JSON], champion: ModelVersion | None) -> Retrained:
    """Move the alias where the ledger says so and it has not moved."""
    model = checkpoints.verify(job.last)
    if judged["promoted"] and (champion is None or champion.digest != model.digest):
        champion = cycle.tracker.register(_run(cycle, job, {}), model, cycle.config.name)
        cycle.tracker.set_champion(champion)
    cycle.tracker.anchor(cycle.run, cycle.ledger.head())
    points = len(cycle.manifest) - len(cycle.removed)
    serves = champion.version if champion else 0
    return Retrained(cycle.number, points, bool(judged["promoted"]), serves, str(judged["reason"]))
