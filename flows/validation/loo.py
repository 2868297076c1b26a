"""The study `loo`: predicted against real rises of the query losses when single points are left out of training."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from flows.validation.bench import Bench
from flows.validation.results import Row, Study, row
from flows.validation.subsets import Retraining
from influence.validation import bootstrap, loo_correlation, noise_ceiling

LEFT_OUT = 40
RESAMPLES = 200  # each sorts all pairs


def study(bench: Bench) -> Study:
    """Retrain without each of some points, spread evenly over the ranking from the most harmful to the most helpful."""
    influence = bench.scores.influence.influence  # [n, m]
    count = min(LEFT_OUT, len(influence))
    spread = torch.linspace(0, len(influence) - 1, count).round().long()
    points = influence.mean(1).argsort(stable=True)[spread]
    rises = _rises(bench, points)  # [r, R, m]
    real, one = rises.mean(1), torch.zeros(count, dtype=torch.int64)
    return Study(
        name="loo",
        protocol=f"{count} points spread evenly over the ranking by mean influence, each left out of "
        f"{bench.extent.retrains} trainings of the same seed and order; over all pairs with {real.shape[1]} queries, "
        "interval over points",
        rows=(
            *agreement_rows("influence", influence[points], real),
            *agreement_rows("gradient dot", bench.scores.gradient_dot[points], real),
            row("noise ceiling", "Spearman", bootstrap(lambda rows: _ceiling(rises[rows]), one, RESAMPLES)),
        ),
    )


def _rises(bench: Bench, points: Tensor) -> Tensor:
    setting, retrains = bench.setting, bench.extent.retrains
    whole = [Retraining(setting.config.training.seed + turn, setting.steps) for turn in range(retrains)]
    without = [replace(job, skipped=place) for place in points.tolist() for job in whole]
    losses = bench.pool.outcomes("models without one point", whole + without).query_loss.double()
    without_one = losses[retrains:].unflatten(0, (len(points), retrains))  # [r, R, m]
    return torch.sub(without_one, losses[:retrains])


def _ceiling(rises: Tensor) -> float:
    """The Spearman correlation over all pairs that exact predictions would reach, of rises `[r, R, m]`."""
    return float(noise_ceiling(rises.transpose(1, 2).flatten(0, 1)[:, :, None]))


def agreement_rows(signal: str, influence: Tensor, rises: Tensor) -> tuple[Row, Row]:
    """Pearson and Spearman correlation over all pairs, both `[r, m]`, with intervals over points."""
    one = torch.zeros(len(influence), dtype=torch.int64)

    def found(rows: Tensor) -> tuple[float, float]:
        agreement = loo_correlation(influence[rows], rises[rows])
        return agreement.pearson, agreement.spearman

    return (
        row(signal, "Pearson", bootstrap(lambda rows: found(rows)[0], one, RESAMPLES)),
        row(signal, "Spearman", bootstrap(lambda rows: found(rows)[1], one, RESAMPLES)),
    )
