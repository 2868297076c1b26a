"""The stage `retrain`: the arms whose comparison is the proof.

Baseline (its further seeds), challenger and random control are trained with the same seeds, the same number of
optimizer steps and the same data version; they differ in the points left out. Where points are left out to train on
fewer, as redundant or balanced, the number of epochs is the same, and challenger and control take fewer steps. Where
points only come back there is no control, for it would be the baseline again. Seeds come in rounds: two, then one more
as long as the guardrail's answer is open; the arms of a round are trained together. A finished model is kept, so a
stage that was killed trains only what is missing.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from flows.drops import record_drops
from flows.looks import refusal
from flows.plans import GIVEN, HOLDOUT, STATE, Job
from flows.policies import FOR_LOAD
from flows.pruning import Proposed, untouchable
from flows.recipe import steps_for
from flows.relabeling import write_labels
from flows.spent import Spent
from flows.stages import Cycle, once
from flows.training import Trained, arm_folder, planned_steps, train_jobs, training_inputs, write_ids
from storage import checkpoints
from storage.files import JSON
from storage.points import PointId
from storage.policies import reason_code
from storage.proposals import Proposal
from storage.tracking import ModelVersion

ARMS = ("baseline", "challenger", "control")
FIRST_ROUND = 2
"""Seeds of it."""


@dataclass(frozen=True)
class Retrained:
    """The models of each arm, by seed, and the champion's outcome.

    Attributes:
        folders: Arm to the folders of its models, in the order of `seeds`.
        checkpoints: Arm to the checkpoint of its first seed.
        steps: Arm to the optimizer steps of its models.
        champion: Folder of the champion's holdout outcome, if there is a champion.
        spent: What the ranks spent in all rounds; None where every model was there.
    """

    seeds: tuple[int, ...]
    folders: Mapping[str, tuple[Path, ...]]
    checkpoints: Mapping[str, Path]
    steps: Mapping[str, int]
    champion: Path | None
    spent: Spent | None = None


def retrain(cycle: Cycle, trained: Trained, proposed: Proposed, before: Retrained | None = None) -> Retrained:
    """Train what the guardrail compares: the first round, or one more seed of each arm.

    Args:
        cycle: The cycle.
        trained: The baseline's first seed.
        proposed: The proposal that was applied. An empty one, or one that was rejected, leaves baseline and champion;
            so does a holdout set that may not be looked at.
        before: The rounds so far.
    """
    refused = refusal(cycle)
    champion = None if refused else _incumbent(cycle)
    pruning = proposed.approved_size > 0 and not refused
    most = cycle.config.guardrail.seeds if pruning else 1
    count = min(FIRST_ROUND, most) if before is None else len(before.seeds) + 1
    inputs = training_inputs(cycle) | {
        "proposal": proposed.hash if pruning else "",
        "seeds": count,
        "champion": champion.digest if champion else "",
    }
    return once(
        cycle,
        f"retrain-{count}",
        Retrained,
        inputs,
        lambda: _retrain(cycle, trained, proposed if pruning else None, champion, count, before),
        intact=_intact,
    )


def _intact(retrained: Retrained) -> bool:
    models = [folder for folders in retrained.folders.values() for folder in folders]
    outcomes = models if retrained.champion is None else [*models, retrained.champion]
    return all((folder / HOLDOUT).exists() for folder in outcomes) and all(
        checkpoint.exists() for checkpoint in retrained.checkpoints.values()
    )


def _retrain(
    cycle: Cycle,
    trained: Trained,
    proposed: Proposed | None,
    champion: ModelVersion | None,
    count: int,
    before: Retrained | None,
) -> Retrained:
    first = cycle.config.training.seed
    seeds = tuple(range(first, first + count))
    arms = arms_of(proposed) if proposed else ("baseline",)
    jobs = {(arm, seed): _job(cycle, trained, proposed, arm, seed) for arm in arms for seed in seeds}
    judged = champion_job(cycle, champion) if champion else None
    missing = [job for job in jobs.values() if not job.done]
    todo = tuple(missing) + ((judged,) if judged and before is None else ())
    spent = train_jobs(cycle, todo, cycle.folder / "logs" / "retrain") if todo else None
    known = 1 if before is None else len(before.seeds) * len(arms)  # before this round: at first the baseline's own
    if spent is not None and len(missing) < len(jobs) - known:
        spent = replace(spent, anew=False)
    for folder in (
        cycle.folder / "checkpoints"
    ).iterdir():  # of models killed when done, or given up for another recipe
        checkpoints.discard(folder / STATE)
        shutil.rmtree(folder / GIVEN, ignore_errors=True)
    record_drops(cycle, jobs.values())
    if proposed:
        key, detail = f"{proposed.hash}/{count}", {"models": len(jobs), "seeds": count}
        cycle.ledger.record_event(cycle.number, "retrained", detail=detail, key=key)
    return Retrained(
        seeds=seeds,
        folders={arm: tuple(jobs[arm, seed].folder for seed in seeds) for arm in arms},
        checkpoints={arm: jobs[arm, first].last for arm in arms},
        steps={arm: jobs[arm, first].steps for arm in arms},
        champion=judged.folder if judged else None,
        spent=spent if before is None else _together(before.spent, spent),
    )


def _together(before: Spent | None, now: Spent | None) -> Spent | None:
    """Of all rounds; what an earlier run had done is not among it."""
    if before is not None and now is not None:
        return before + now
    some = before or now
    return None if some is None else replace(some, anew=False)


def _job(cycle: Cycle, trained: Trained, proposed: Proposed | None, arm: str, seed: int) -> Job:
    inputs: dict[str, JSON] = training_inputs(cycle)
    removed, relabeled = cycle.removed, cycle.relabeled
    steps, planned = trained.steps, planned_steps(cycle)
    if proposed is not None and arm != "baseline":
        inputs |= {"arm": arm, "proposal": proposed.hash}
        proposal = Proposal.read(cycle.folder)
        if arm == "challenger":
            removed, relabeled = pruned(cycle, proposal)
        else:
            removed |= frozenset(random_control(cycle, _points(proposal, "remove", "relabel"), seed))
        if for_load(proposal):
            fewer = steps_for(cycle.config.training, len(cycle.manifest) - len(pruned(cycle, proposal)[0]))
            steps, planned = max(1, round(steps * fewer / planned)), fewer
    first = arm == "baseline" and seed == cycle.config.training.seed
    plans = cycle.folder / "plans"
    return Job(
        role=arm,
        seed=seed,
        steps=steps,
        planned=planned,
        removed=write_ids(plans / f"removed-{arm}-seed{seed}.parquet", removed, cycle.manifest),
        relabeled=write_labels(plans / f"relabeled-{arm}-seed{seed}.parquet", relabeled, cycle.manifest),
        folder=arm_folder(cycle, arm, seed, inputs),
        save_at=tuple(map(checkpoints.step_of, trained.checkpoints)) if first else (steps,),
    )


def arms_of(proposed: Proposed) -> tuple[str, ...]:
    """What is compared; where points only come back nothing leaves that chance could choose, so there is no control."""
    return ARMS[:2] if proposed.actions.keys() == {"restore"} else ARMS


def for_load(proposal: Proposal) -> bool:
    """Whether points are left out to train on fewer: then arms are compared at the same number of epochs."""
    return any(_policies(reason) & FOR_LOAD for reason in proposal.rows["reason"].to_pylist())


def for_load_alone(proposal: Proposal) -> bool:
    """Whether that is all it does: then no model is to become better by it."""
    reasons = proposal.rows["reason"].to_pylist()
    return bool(reasons) and all(_policies(reason) <= FOR_LOAD for reason in reasons)


def _policies(reason: str) -> set[str]:
    return set(reason_code(reason).split("+"))


def pruned(cycle: Cycle, proposal: Proposal) -> tuple[frozenset[PointId], Mapping[PointId, int]]:
    """What is removed and relabelled once the proposal is carried out on the cycle's data set."""
    restored = _points(proposal, "restore")
    removed = (cycle.removed | _points(proposal, "remove")) - restored
    relabeled = {point: label for point, label in cycle.relabeled.items() if point not in removed | restored}
    new = [row for row in proposal.rows.to_pylist() if row["action"] == "relabel"]
    return removed, relabeled | {row["point_id"]: row["new_label"] for row in new}


def _points(proposal: Proposal, *actions: str) -> frozenset[PointId]:
    named = zip(proposal.points, proposal.rows["action"].to_pylist())
    return frozenset(point for point, action in named if action in actions)


def random_control(cycle: Cycle, points: Collection[PointId], seed: int) -> list[PointId]:
    """As many random removable points of each given label as these, a new draw per seed, to be removed.

    Where there are no classes, of each group.
    """
    table = cycle.manifest.table
    by = "label" if table["label"].null_count < len(table) else "group"
    label = dict(zip(cycle.manifest.ids, table[by].to_pylist()))
    wanted = Counter(label[point] for point in points)
    kept_back = cycle.removed | untouchable(cycle)
    pool = [point for point in cycle.manifest.ids if point not in kept_back]
    generator = torch.Generator().manual_seed(seed)
    drawn: list[PointId] = []
    for place in torch.randperm(len(pool), generator=generator).tolist():
        if wanted[label[pool[place]]] > 0:
            wanted[label[pool[place]]] -= 1
            drawn.append(pool[place])
    return drawn


def champion_job(cycle: Cycle, version: ModelVersion) -> Job:
    """The model in service, to be judged as it is."""
    return Job(
        role="champion",
        seed=0,
        steps=0,
        planned=0,
        folder=cycle.folder / "checkpoints" / f"champion-v{version.version}",
        weights=cycle.tracker.weights(version),
    )


@dataclass(frozen=True)
class _Incumbent:
    version: ModelVersion | None


def _incumbent(cycle: Cycle) -> ModelVersion | None:
    """The champion that this cycle began with, kept: the alias moves before the event that ends the cycle."""
    inputs: dict[str, JSON] = {"cycle": cycle.number}
    return once(
        cycle, "incumbent", _Incumbent, inputs, lambda: _Incumbent(cycle.tracker.champion(cycle.config.name))
    ).version
