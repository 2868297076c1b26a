"""The study `lds`: predicted against real query losses of models trained on random halves of the points."""

from __future__ import annotations

import torch
from torch import Tensor

from flows.validation.bench import Bench
from flows.validation.results import Row, Study, row
from flows.validation.subsets import draw_subsets, subset_retrainings
from influence.validation import bootstrap, lds, noise_ceiling

SHARE = 0.5


def study(bench: Bench) -> Study:
    """Linear datamodeling score of the estimator and of the plain gradient dot product."""
    training, extent = bench.setting.config.training, bench.extent
    subsets = draw_subsets(len(bench.setting.train), extent.subsets, SHARE, training.seed)
    jobs = subset_retrainings(training, subsets, extent.retrains)
    found = bench.pool.outcomes("models on half of the points", jobs)
    losses = found.query_loss.double().unflatten(0, (extent.subsets, extent.retrains))  # [M, R, m]
    scores = bench.scores
    return Study(
        name="lds",
        protocol=f"rank correlation over {extent.subsets} random halves of the points, {extent.retrains} models each, "
        f"of predicted and real losses; mean over {losses.shape[2]} queries, interval over queries",
        rows=(
            _row("influence", lds(scores.influence.influence, subsets, losses.mean(1))),
            _row("gradient dot", lds(scores.gradient_dot, subsets, losses.mean(1))),
            _row("noise ceiling", noise_ceiling(losses)),
        ),
    )


def _row(signal: str, by_query: Tensor) -> Row:
    one = torch.zeros(len(by_query), dtype=torch.int64)
    return row(signal, "LDS", bootstrap(lambda rows: float(by_query[rows].mean()), one))
