"""The stage `judge`: challenger against baseline, control and champion on the holdout set.

The statistic is the loss difference per holdout point in nats, averaged over the seeds and bootstrapped over points and
seeds. The challenger is promoted if the one-sided 95 % upper bound of challenger - baseline is below `tolerance`, that
of challenger - control below 0, that of (mean challenger - champion) below `tolerance`, and no class or group is worse
than the baseline by more than `group_tolerance` beyond doubt. Nothing else promotes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import torch
from torch import Tensor

from flows.errors import BadInput
from flows.plans import HOLDOUT
from flows.pruning import Proposed
from flows.retraining import Retrained
from flows.sections.curation import GuardrailConfig
from flows.stages import Cycle, once
from storage.files import JSON, sha256_file

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over holdout points and seeds.

    Attributes:
        low: With `high`, the two-sided 95 % bootstrap interval.
        lower: One-sided 95 % lower bound; `upper` the upper one.
    """

    mean: float
    low: float
    high: float
    lower: float
    upper: float


@dataclass(frozen=True)
class ArmOutcome:
    """An arm on the holdout set: loss in nats, accuracy as a share."""

    loss: Estimate
    accuracy: Estimate
    seeds: int


@dataclass(frozen=True)
class Check:
    """One condition of promotion: `bound` must be below `limit`."""

    name: str
    bound: float
    limit: float
    passed: bool


@dataclass(frozen=True)
class Verdict:
    """What the guardrail found.

    Attributes:
        promote: The role whose first-seed model becomes champion, or empty.
        reason: One sentence.
    """

    promote: str
    reason: str
    checks: tuple[Check, ...]
    arms: Mapping[str, ArmOutcome]


@dataclass(frozen=True)
class Outcome:
    """Losses and hits of one arm on the holdout set: `[S, N]`, and the label and group of each point: `[N]`."""

    loss: Tensor
    correct: Tensor
    label: Tensor
    group: tuple[str | None, ...] = ()

    def slices(self) -> dict[str, Tensor]:
        """The points of each class and of each group, by name: `[N]` bool."""
        found = {f"class {label}": self.label == label for label in self.label.unique().tolist()}
        for group in sorted({group for group in self.group if group is not None}):
            found[f"group {group}"] = torch.tensor([other == group for other in self.group])
        return found


def judge(cycle: Cycle, proposed: Proposed, retrained: Retrained) -> Verdict:
    """Compare the arms and say which model, if any, becomes champion."""
    files = [folder / HOLDOUT for folders in retrained.folders.values() for folder in folders]
    inputs: dict[str, JSON] = {"outcomes": [sha256_file(path) for path in files], **cycle.section("guardrail")}
    if retrained.champion is not None:
        inputs["champion"] = sha256_file(retrained.champion / HOLDOUT)
    return once(cycle, "judge", Verdict, inputs, lambda: _judge(cycle, proposed, retrained))


def _judge(cycle: Cycle, proposed: Proposed, retrained: Retrained) -> Verdict:
    outcomes = {arm: read_outcome(folders) for arm, folders in retrained.folders.items()}
    champion = read_outcome((retrained.champion,)) if retrained.champion else None
    verdict = compare(outcomes, champion, cycle.config.guardrail, cycle.config.training.seed)
    if proposed.approved_size:
        cycle.ledger.record_event(cycle.number, "judged", detail={"reason": verdict.reason}, key=proposed.hash)
    return verdict


def read_outcome(folders: tuple[Path, ...]) -> Outcome:
    """Read the holdout outcomes of an arm's models.

    Raises:
        BadInput: A loss is not finite.
    """
    tables = [pq.read_table(folder / HOLDOUT) for folder in folders]
    loss = torch.stack([torch.from_numpy(table["loss"].to_numpy().copy()) for table in tables])
    if not bool(loss.isfinite().all()):
        seed, point = (~loss.isfinite()).nonzero()[0].tolist()
        raise BadInput(f"the holdout loss of point {tables[seed]['point_id'][point]} is not finite ({folders[seed]})")
    correct = torch.stack([torch.tensor(table["correct"].to_pylist(), dtype=torch.float64) for table in tables])
    return Outcome(loss, correct, torch.tensor(tables[0]["label"].to_pylist()), tuple(tables[0]["group"].to_pylist()))


def compare(
    outcomes: Mapping[str, Outcome], champion: Outcome | None, guardrail: GuardrailConfig, seed: int
) -> Verdict:
    """Apply the promotion rule to the arms' outcomes.

    Args:
        outcomes: Of `baseline`, and of `challenger` and `control` if something was removed.
        champion: Of the model in service, one seed.
        guardrail: Tolerances and the number of bootstrap resamples.
        seed: Of the bootstrap.
    """

    def estimate(values: Tensor) -> Estimate:
        return bootstrap(values, guardrail.resamples, seed)

    arms = {
        arm: ArmOutcome(estimate(outcome.loss), estimate(outcome.correct), len(outcome.loss))
        for arm, outcome in outcomes.items()
    }
    checks = _of_challenger(outcomes, champion, guardrail, estimate) if "challenger" in outcomes else []
    if checks and all(check.passed for check in checks):
        return Verdict("challenger", "every bound of the challenger is below its limit", tuple(checks), arms)
    failed = [f"{check.name} {check.bound:+.4f} is not below {check.limit:g}" for check in checks if not check.passed]
    if champion is None:
        fallback = "there is no champion yet, so the baseline becomes it"
        return Verdict("baseline", "; ".join([*failed, fallback]), tuple(checks), arms)
    bound = estimate(outcomes["baseline"].loss.mean(0, keepdim=True) - champion.loss).upper
    against = Check("baseline - champion", bound, guardrail.tolerance, bound < guardrail.tolerance)
    fallback = f"baseline - champion {bound:+.4f} is {'' if against.passed else 'not '}below {guardrail.tolerance:g}"
    promoted = "baseline" if against.passed else ""
    return Verdict(promoted, "; ".join([*failed, fallback]), (*checks, against), arms)


def _of_challenger(
    outcomes: Mapping[str, Outcome],
    champion: Outcome | None,
    guardrail: GuardrailConfig,
    estimate: Callable[[Tensor], Estimate],
) -> list[Check]:
    baseline, challenger = outcomes["baseline"], outcomes["challenger"]
    change = challenger.loss - baseline.loss  # [S, N]
    bounds = [
        ("challenger - baseline", estimate(change).upper, guardrail.tolerance),
        ("challenger - control", estimate(challenger.loss - outcomes["control"].loss).upper, 0.0),
    ]
    if champion is not None:
        against = challenger.loss.mean(0, keepdim=True) - champion.loss  # [1, N]
        bounds.append(("challenger - champion", estimate(against).upper, guardrail.tolerance))
    for name, points in baseline.slices().items():
        worse = estimate(change[:, points]).lower  # refused only where it is worse beyond doubt
        bounds.append((f"{name}, lower bound", worse, guardrail.group_tolerance))
    return [Check(name, bound, limit, bound < limit) for name, bound, limit in bounds]


def bootstrap(values: Tensor, resamples: int, seed: int) -> Estimate:
    """Resample the mean of `values` `[S, N]` over both axes: seeds and points.

    Args:
        values: One number per seed and holdout point; the same points in every row.
        resamples: How often.
        seed: Of the draws.
    """
    seeds, points = values.shape
    generator = torch.Generator().manual_seed(seed)
    means = torch.empty(resamples, dtype=torch.float64)
    for draw in range(resamples):
        rows = torch.randint(seeds, (seeds,), generator=generator)
        columns = torch.randint(points, (points,), generator=generator)
        weight = torch.bincount(rows, minlength=seeds).double()
        means[draw] = (weight @ values)[columns].mean() / seeds
    tail = 1 - LEVEL
    levels = torch.tensor([tail / 2, tail, LEVEL, 1 - tail / 2], dtype=torch.float64)
    low, lower, upper, high = torch.quantile(means, levels).tolist()
    return Estimate(float(values.mean()), low, high, lower, upper)
