"""The stage `judge`: challenger against baseline, control and champion on the holdout set.

The statistic is the loss difference per holdout point in nats, averaged over the seeds (flows/bounds.py). The
challenger is promoted if the upper bound of challenger - baseline is below `tolerance`, that of challenger - control
below 0, that of the mean challenger - champion below `tolerance`, and no class or group is worse than the baseline by
more than `group_tolerance`, by one-sided tests corrected after Holm. All must hold, so each may be tested at the level
of the whole (Berger 1982). Nothing else promotes.

A proposal of nothing but `redundant` or `balanced` points saves training and promises no better model, so its
challenger need not be one: all three bounds must be below `redundant_tolerance`, that against the control, too
(non-inferiority). A challenger that truly loses so much or more against any of the three is promoted once in twenty at
most, by the same bounds, seeds, looks and levels, whatever is found against the other two. What is no longer claimed is
that these points were a better choice than random ones; and each such cycle may cost the margin, k of them k times.

A proposal by which points only come back has no control. The control asks whether the choice of what leaves is better
than chance, and nothing leaves: a random removal of no point is the baseline, which the challenger need not beat, as
the data were given with these points, and it was their removal that had to prove itself. Nor would it be right to ask
for more than other removed points would bring: where they bring as much, that speaks for their return, not against it.
So the bounds against baseline and champion must be below `tolerance`, and the classes and groups must hold: a return
that truly costs so much against either is promoted once in twenty at most. The seeds' error has two arms to rest on.

Seeds come in rounds, and after each the answer may be clear. A challenger is given up when a difference is itself on
the wrong side of its limit, or a class or group is worse beyond doubt: that can only lose promotions. It is promoted
before the last round by bounds at a small level (Haybittle 1971, Peto 1976): those of all early looks and of the last
add up to .05, so that the sum, whatever the looks have in common, bounds the share of false promotions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from flows.bounds import Draws, Estimate, SeedError, draw_mean, holm
from flows.errors import BadInput
from flows.looks import looks_before, refusal
from flows.plans import HOLDOUT
from flows.pruning import Proposed
from flows.retraining import ARMS, FIRST_ROUND, Retrained, for_load_alone
from flows.sections.curation import GuardrailConfig
from flows.stages import Cycle, once
from storage.files import JSON, sha256_file
from storage.proposals import Proposal

ALPHA = 0.05
EARLY = 0.01  # of it, for all looks before the last
HOLM = ", p after Holm"
DIFFERENCES = ("challenger - baseline", "challenger - control", "challenger - champion", "baseline - champion")


@dataclass(frozen=True)
class ArmOutcome:
    """An arm on the holdout set: loss in nats, accuracy as a share, None where there are no classes."""

    loss: Estimate
    accuracy: Estimate | None
    seeds: int


@dataclass(frozen=True)
class Check:
    """One condition of promotion.

    Attributes:
        name: Of the difference, or of the class or group.
        mean: The difference of the mean losses, nats.
        bound: Its upper bound, which must be below `limit`; or p, of a class or group not being worse than the baseline
            by more than the tolerance, corrected after Holm, which must be at least `limit`.
        hopeless: More seeds would not help.
        note: The level of the bound, or the tolerance that p is about.
    """

    name: str
    mean: float
    bound: float
    limit: float
    passed: bool
    hopeless: bool
    note: str = ""

    @property
    def said(self) -> str:
        """For people."""
        if self.name.endswith(HOLM):
            return f"{self.bound:.4f} is {'not ' if self.passed else ''}below {self.limit:g} ({self.note})"
        return f"{self.bound:+.4f} is {'' if self.passed else 'not '}below {self.limit:g} ({self.note})"


@dataclass(frozen=True)
class Verdict:
    """What the guardrail found.

    Attributes:
        promote: The role whose first-seed model becomes champion, or empty.
        reason: One sentence.
        seeds: That were compared.
        stopped: Why no more were, in words; empty while the answer is open and another round is to be trained.
        looks: At this holdout set, this one included; 0 where the set was not looked at.
    """

    promote: str
    reason: str
    checks: tuple[Check, ...]
    arms: Mapping[str, ArmOutcome]
    seeds: int
    stopped: str
    looks: int = 0


@dataclass(frozen=True)
class Outcome:
    """Losses and hits of one arm on the holdout set: `[S, N]`, and the label and group of each point: `[N]`.

    Where there are no classes, hits are None and labels -1.
    """

    loss: Tensor
    correct: Tensor | None
    label: Tensor
    group: tuple[str | None, ...] = ()

    def slices(self) -> dict[str, Tensor]:
        """The points of each class and of each group, by name: `[N]` bool."""
        found = {f"class {label}": self.label == label for label in self.label.unique().tolist() if label >= 0}
        for group in sorted({group for group in self.group if group is not None}):
            found[f"group {group}"] = torch.tensor([other == group for other in self.group])
        return found

    def arm(self, resamples: int, seed: int) -> ArmOutcome:
        """Means and intervals."""
        loss = draw_mean(self.loss, resamples, seed)
        hits = None if self.correct is None else draw_mean(self.correct, resamples, seed).estimate(0, 1)
        return ArmOutcome(loss.estimate(least=0), hits, len(self.loss))


def judge(cycle: Cycle, proposed: Proposed, retrained: Retrained) -> Verdict:
    """Compare the arms and say which model, if any, becomes champion; or that another round of seeds is needed."""
    if refused := refusal(cycle):
        return Verdict("", refused, (), {}, 0, "the holdout set is not looked at again")
    files = [folder / HOLDOUT for folders in retrained.folders.values() for folder in folders]
    inputs: dict[str, JSON] = {"outcomes": [sha256_file(path) for path in files], **cycle.section("guardrail")}
    inputs["proposal"] = proposed.hash
    if retrained.champion is not None:
        inputs["champion"] = sha256_file(retrained.champion / HOLDOUT)
    name = f"judge-{len(retrained.seeds)}"
    return once(cycle, name, Verdict, inputs, lambda: _judge(cycle, proposed, retrained))


def _judge(cycle: Cycle, proposed: Proposed, retrained: Retrained) -> Verdict:
    outcomes = {arm: read_outcome(folders) for arm, folders in retrained.folders.items()}
    champion = read_outcome((retrained.champion,)) if retrained.champion else None
    guardrail = cycle.config.guardrail
    margin = guardrail.redundant_tolerance if for_load_alone(Proposal.read(cycle.folder)) else None
    verdict = compare(outcomes, champion, guardrail, cycle.config.training.seed, margin)
    verdict = replace(verdict, looks=looks_before(cycle) + 1)
    detail: dict[str, JSON] = {"reason": verdict.reason, "stopped": verdict.stopped, "seeds": verdict.seeds}
    detail |= {"holdout": cycle.digests["holdout"], "look": verdict.looks}
    key = proposed.hash if verdict.stopped else f"{proposed.hash}/{verdict.seeds}"
    cycle.ledger.record_event(cycle.number, "judged", detail=detail, key=key)
    return verdict


def read_outcome(folders: tuple[Path, ...]) -> Outcome:
    """Read the holdout outcomes of an arm's models.

    Raises:
        BadInput: A loss is not finite, or there is a single point, which says nothing of its own error.
    """
    tables = [pq.read_table(folder / HOLDOUT) for folder in folders]
    if len(tables[0]) < 2:
        raise BadInput("the holdout set has 1 point: give at least 2, of which a mean has an error")
    loss = torch.stack([torch.from_numpy(table["loss"].to_numpy().copy()) for table in tables])
    if not bool(loss.isfinite().all()):
        seed, point = (~loss.isfinite()).nonzero()[0].tolist()
        raise BadInput(f"the holdout loss of point {tables[seed]['point_id'][point]} is not finite ({folders[seed]})")
    correct = None
    if not any(table["correct"].null_count for table in tables):
        correct = torch.stack([torch.tensor(table["correct"].to_pylist(), dtype=torch.float64) for table in tables])
    label = torch.tensor(pc.fill_null(tables[0]["label"], -1).to_pylist())
    return Outcome(loss, correct, label, tuple(tables[0]["group"].to_pylist()))


def level_of(count: int, seeds: int) -> float:
    """Share of false promotions that the bounds may allow after `count` of at most so many seeds."""
    early = seeds - min(FIRST_ROUND, seeds)
    if not early:
        return ALPHA
    return EARLY / early if count < seeds else ALPHA - EARLY


def compare(
    outcomes: Mapping[str, Outcome],
    champion: Outcome | None,
    guardrail: GuardrailConfig,
    seed: int,
    margin: float | None = None,
) -> Verdict:
    """Apply the promotion rule to the arms' outcomes.

    Args:
        outcomes: Of `baseline`, of `challenger` if something is proposed, and of `control` if something is to leave: as
            many seeds each.
        champion: Of the model in service, one seed.
        guardrail: Tolerances, the most seeds and the number of resamples.
        seed: Of the draws.
        margin: Nats that the challenger may lose against all three, where it is not to be better but to take less
            training; None: it must be better than the control, if there is one.
    """
    count = len(outcomes["baseline"].loss)
    arms = {arm: outcome.arm(guardrail.resamples, seed) for arm, outcome in outcomes.items()}
    checks = _of_challenger(outcomes, champion, guardrail, seed, margin) if "challenger" in outcomes else ()
    if checks and all(check.passed for check in checks):
        limit = "its limit" if margin is None else f"{margin:g} nats, what less training may cost"
        if "control" not in outcomes:
            limit = f"{guardrail.tolerance:g} nats, what a return may cost"
        reason = f"every bound of the challenger is below {limit}, and no class or group is worse"
        return Verdict("challenger", reason, checks, arms, count, _stopped("better", count, guardrail.seeds))
    hopeless = any(check.hopeless for check in checks)
    if checks and not hopeless and count < guardrail.seeds:
        return Verdict("", f"open after {count} of {guardrail.seeds} seeds", checks, arms, count, "")
    stopped = _stopped("not better", count, guardrail.seeds) if checks else "nothing was to be proven"
    return _fallback(outcomes["baseline"], champion, guardrail, seed, Verdict("", "", checks, arms, count, stopped))


def _stopped(said: str, count: int, seeds: int) -> str:
    return f"all {seeds} seeds were compared" if count == seeds else f"clearly {said} after {count} of {seeds} seeds"


def _fallback(
    baseline: Outcome, champion: Outcome | None, guardrail: GuardrailConfig, seed: int, verdict: Verdict
) -> Verdict:
    """The baseline's turn: it becomes champion if there is none, or if it is not worse."""
    failed = [f"{check.name} {check.said}" for check in verdict.checks if not check.passed]
    if champion is None:
        fallback = "there is no champion yet, so the baseline becomes it"
        return replace(verdict, promote="baseline", reason="; ".join([*failed, fallback]))
    draws = draw_mean(baseline.loss.mean(0, keepdim=True) - champion.loss, guardrail.resamples, seed)
    against = _below("baseline - champion", draws, ALPHA, guardrail.tolerance)
    promote, reason = "baseline" if against.passed else "", "; ".join([*failed, f"{against.name} {against.said}"])
    return replace(verdict, promote=promote, reason=reason, checks=(*verdict.checks, against))


def _of_challenger(
    outcomes: Mapping[str, Outcome],
    champion: Outcome | None,
    guardrail: GuardrailConfig,
    seed: int,
    margin: float | None,
) -> tuple[Check, ...]:
    tolerance, better = (guardrail.tolerance, 0.0) if margin is None else (margin, margin)
    losses = torch.stack([outcomes[arm].loss for arm in ARMS if arm in outcomes])  # [A, S, N]
    baseline, challenger, *controls = losses
    of_seeds, alpha = SeedError.of_difference(losses.mean(2)), level_of(losses.shape[1], guardrail.seeds)

    def below(name: str, values: Tensor, limit: float, error: SeedError | None = None) -> Check:
        return _below(name, draw_mean(values, max(guardrail.resamples, round(20 / alpha)), seed, error), alpha, limit)

    checks = [
        below("challenger - baseline", challenger - baseline, tolerance, of_seeds),
        *(below("challenger - control", challenger - control, better, of_seeds) for control in controls),
    ]
    if champion is not None:
        against = challenger.mean(0, keepdim=True) - champion.loss  # [1, N]
        checks.append(below("challenger - champion", against, tolerance))
    return (*checks, *_of_slices(losses, outcomes["baseline"].slices(), guardrail, seed))


def _below(name: str, draws: Draws, alpha: float, limit: float) -> Check:
    bound = draws.upper(alpha)
    note = f"level {alpha:.2g}"
    return Check(name, draws.mean, bound, limit, passed=bound < limit, hopeless=not draws.mean < limit, note=note)


def _of_slices(losses: Tensor, slices: Mapping[str, Tensor], guardrail: GuardrailConfig, seed: int) -> list[Check]:
    """Whether a class or group is worse than the baseline beyond doubt, which nothing can be of a single point."""
    resamples = max(guardrail.resamples, round(2 * len(slices) / ALPHA))  # so that the least p can be told from ALPHA
    p_values, means = dict[str, float](), dict[str, float]()
    for name, points in slices.items():
        inside = losses[:, :, points]
        change = inside[1] - inside[0]
        means[name], p_values[name] = float(change.mean()), 1.0
        if change.shape[1] > 1:
            draws = draw_mean(change, resamples, seed, SeedError.of_difference(inside.mean(2)))
            p_values[name] = draws.p_above(guardrail.group_tolerance)
    note = f"worse by {guardrail.group_tolerance:g} nats"
    return [
        Check(name + HOLM, means[name], p, ALPHA, passed=p >= ALPHA, hopeless=p < ALPHA, note=note)
        for name, p in holm(p_values).items()
    ]
