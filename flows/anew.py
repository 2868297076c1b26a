"""`tamis retrain CYCLE`: a model of the data set as of a cycle, by the recipe of now, judged against the champion.

It is trained and judged as a baseline is, and becomes champion by the rule that a baseline becomes it by: if there is
none, or if the upper bound of its loss against the champion's is below `guardrail.tolerance`. No point is removed or
restored by that. The look at the holdout set counts, as the look of a cycle does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flows.check import require
from flows.config import Config, load
from flows.dataset import read_sets
from flows.decision import named
from flows.errors import BadInput
from flows.guardrail import Verdict, compare, read_outcome
from flows.launch import Progress
from flows.looks import looks_before, refusal
from flows.moving import in_force, manifest_of_cycle
from flows.opening import digests_of, workspace
from flows.plans import Job
from flows.progress import progress_shown
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
    with workspace(config), progress_shown() as show:
        cycle = _as_of(config, workload, number, show)
        if refused := refusal(cycle, by_hand=True):
            raise BadInput(refused)
        return _retrain(cycle, by)


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
    run = record.mlflow_run_id or tracker.cycle_run(number, record.dataset_sha256, {})
    return Cycle(
        config, number, sets.train, known.removed, digest, digests, ledger, tracker, run, show, known.relabeled
    )


def _recorded(config: Config, ledger: Ledger, number: int) -> str:
    train = Manifest.read(manifest_of_cycle(config.workspace, number))
    known = in_force(ledger, number, train)
    return dataset_sha256(train, known.removed, known.relabeled)


def _retrain(cycle: Cycle, by: str) -> Retrained:
    champion = cycle.tracker.champion(cycle.config.name)
    job = _job(cycle)
    against = champion_job(cycle, champion) if champion else None
    train_jobs(cycle, tuple(one for one in (job, against) if one and not one.done), cycle.folder / "logs" / ROLE)
    theirs = read_outcome((against.folder,)) if against else None
    seed = cycle.config.training.seed
    verdict = compare({"baseline": read_outcome((job.folder,))}, theirs, cycle.config.guardrail, seed)
    return _conclude(cycle, job, verdict, by, champion.version if champion else 0)


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


def _conclude(cycle: Cycle, job: Job, verdict: Verdict, by: str, champion: int) -> Retrained:
    """Ledger first, then the alias: a second call with the same model and champion changes nothing."""
    model = checkpoints.verify(job.last)
    loss, accuracy = verdict.arms["baseline"].loss.mean, verdict.arms["baseline"].accuracy.mean
    metrics = {"holdout_loss": loss, "holdout_accuracy": accuracy}
    run = cycle.tracker.arm_run(cycle.run, ROLE, job.seed, {"steps": job.ended}, metrics)
    key = f"by hand/{model.digest}/{champion}"
    promoted = bool(verdict.promote)
    detail: dict[str, JSON] = {"reason": verdict.reason, "by": by, "checkpoint": model.digest, "promoted": promoted}
    detail |= {"dataset_sha256": cycle.dataset_sha256, "holdout": cycle.digests["holdout"]}
    detail |= {"look": looks_before(cycle, by_hand=True) + 1}
    cycle.ledger.record_event(cycle.number, "judged", detail=detail, key=key)
    if promoted:
        version = cycle.tracker.register(run, model, cycle.config.name)
        cycle.tracker.set_champion(version)
        champion = version.version
    cycle.tracker.anchor(cycle.run, cycle.ledger.head())
    points = len(cycle.manifest) - len(cycle.removed)
    return Retrained(cycle.number, points, promoted, champion, verdict.reason)
