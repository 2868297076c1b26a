"""`tamis validate --fragility`: how far the scores move with damping, checkpoint, seed, weight decay, depth and width.

What follows from a setting follows it here, too: with the weight decay goes the damping that defaults to it. All is
said query by query (Basu et al. 2021, arXiv 2006.14651). Depth and width are varied where the workload has a method
`variants() -> Mapping[str, Workload]`: by name, workloads of the same points and queries with another model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flows.launch import Progress
from flows.recipe import save_points
from flows.validation.bench import Bench, trained
from flows.validation.lds import SHARE
from flows.validation.results import Row, Study, row
from flows.validation.setting import Setting
from flows.validation.subsets import draw_subsets, subset_retrainings
from flows.validation.verdict import Verdict, settings_digest
from flows.workload import Workload
from influence import InfluenceError
from influence.fragility import rank_agreement, spread
from influence.validation import bootstrap, lds

DAMPINGS = (0.1, 0.3, 3.0, 10.0)
DECAYS = (0.1, 10.0)
SEEDS = 2
BOUND = 0.5  # of a rank correlation: below, what was changed says more of the ranking than the points do
JUDGED = ("damping x 0.3", "damping x 3", "checkpoint", "seed")  # what a variation begins with that the verdict counts
CONFIGURED = "as configured"
AGREEMENT, TRUTH = "Spearman with the configured scores", "LDS"


@dataclass(frozen=True)
class Fragility:
    """What was found: the verdict, and by measure and variation the figure of every query, `[m]`."""

    verdict: Verdict
    by_query: Mapping[str, Mapping[str, Tensor]]


def measure(bench: Bench, *, truth: bool) -> Fragility:
    """Change one setting after the other and score again.

    Args:
        bench: The setting and its models.
        truth: Whether to give the LDS, too, from the models of the study `lds`; only of changes that leave the
            training, and so the truth, as it is.
    """
    setting, skipped = bench.setting, list[str]()
    grid = bench.sweep(setting, bench.checkpoints, (1.0, *DAMPINGS))  # [checkpoints, dampings, n, m]
    configured, same = grid[:, 0].sum(0), _same_model(setting, grid)
    agreement = {name: rank_agreement(scores, configured) for name, scores in same.items()}
    by_query = {AGREEMENT: agreement}
    if truth:
        judge = _half_truth(bench)
        by_query[TRUTH] = {name: judge(scores) for name, scores in ({CONFIGURED: configured} | same).items()}
    others = _other_models(setting, skipped)
    for done, (name, other) in enumerate(others.items(), start=1):
        try:
            scores = bench.sweep(other, trained(other), (1.0,))[:, 0].sum(0)
            agreement[name] = rank_agreement(scores, configured)
        except InfluenceError as error:
            skipped.append(f"{name} ({error})")
        bench.show(Progress("fragility, other models", done, len(others)))
    verdict = Verdict(
        settings=settings_digest(setting.config, setting.workload),
        bound=BOUND,
        judged=tuple(name for name in agreement if name.startswith(JUDGED)),
        agreement={name: spread(found, BOUND) for name, found in agreement.items()},
        lds={name: spread(found, BOUND) for name, found in by_query.get(TRUTH, {}).items()},
        skipped=tuple(skipped),
    )
    return Fragility(verdict, by_query)


def study(found: Fragility) -> Study:
    """As a table: medians with quantiles, and the share of queries that fare ill."""
    skipped = "".join(f"; not varied: {line}" for line in found.verdict.skipped)
    return Study(
        name="fragility",
        protocol=f"{found.verdict.sentence}; value: median over queries, brackets: 10 % and 90 % quantile, of a share "
        f"its 95 % interval{skipped}",
        rows=tuple(
            one for measure, values in found.by_query.items() for name in values for one in _rows(found, measure, name)
        ),
    )


def _rows(found: Fragility, measure: str, name: str) -> list[Row]:
    by_query = found.by_query[measure][name]
    summed, one = spread(by_query, BOUND), torch.zeros(len(by_query), dtype=torch.int64)
    below = bootstrap(lambda rows: float((by_query[rows] < BOUND).double().mean()), one)
    return [
        Row(name, measure, summed.median, summed.low, summed.high),
        row(name, f"share of queries whose {measure.split()[0]} is below {BOUND:g}", below),
    ]


def _same_model(setting: Setting, grid: Tensor) -> dict[str, Tensor]:
    """Scores of the trained model under other dampings, and of each of its checkpoints alone, `[n, m]` each."""
    found = {f"damping x {by:g}": scores for by, scores in zip(DAMPINGS, grid.sum(0)[1:], strict=True)}
    if len(grid) > 1:
        steps = save_points(setting.config.training, setting.steps)
        found |= {f"checkpoint {step} alone": scores for step, scores in zip(steps, grid[:, 0], strict=True)}
    return found


def _other_models(setting: Setting, skipped: list[str]) -> dict[str, Setting]:
    """What trains another model: another seed, weight decay, depth or width."""
    training = setting.config.training

    def by_recipe(**changed: float) -> Setting:
        config = setting.config.model_copy(update={"training": training.model_copy(update=changed)})
        return replace(setting, config=config)

    seeds = (training.seed + turn for turn in range(1, SEEDS + 1))
    found = {f"seed {seed}": by_recipe(seed=seed) for seed in seeds}
    if training.weight_decay:
        found |= {f"weight decay x {by:g}": by_recipe(weight_decay=by * training.weight_decay) for by in DECAYS}
    else:
        skipped.append("weight decay (it is 0)")
    variants: Mapping[str, Workload] = getattr(setting.workload, "variants", dict)()
    if not variants:
        skipped.append("depth and width (the workload offers no variants())")
    return found | {f"model, {name}": replace(setting, workload=workload) for name, workload in variants.items()}


def _half_truth(bench: Bench) -> Callable[[Tensor], Tensor]:
    """LDS per query of scores `[n, m]`, `[m]`, against the models of the study `lds`."""
    training, extent = bench.setting.config.training, bench.extent
    subsets = draw_subsets(len(bench.setting.train), extent.subsets, SHARE, training.seed)
    found = bench.pool.outcomes("models on half of the points", subset_retrainings(training, subsets, extent.retrains))
    losses = found.query_loss.double().unflatten(0, (extent.subsets, extent.retrains)).mean(1)  # [M, m]
    return lambda scores: lds(scores, subsets, losses)
