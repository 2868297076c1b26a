"""The study `memorization`: the signals against what models with and without each point make of it.

The oracle is Feldman and Zhang's (arXiv 2008.03703), with the probability of the given label as the outcome, which has
less noise than being right.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flows.validation.bench import Bench, Extent
from flows.validation.results import Row, Study, row
from flows.validation.setting import Setting
from flows.validation.subsets import draw_subsets, subset_retrainings
from influence.oracle import check_subsets, subset_influence, subset_memorization
from influence.validation import bootstrap, spearman

SHARE = 0.7


def study(bench: Bench) -> Study:
    """Rank correlation, over points, of each signal with the oracle."""
    training, extent, scores = bench.setting.config.training, bench.extent, bench.scores
    subsets = oracle_subsets(bench.setting, extent)
    found = bench.pool.outcomes("models on 70 % of the points", subset_retrainings(training, subsets, 1))
    memory = subset_memorization(subsets, found.train_loss.double().neg().exp())
    helpful = subset_influence(subsets, found.query_loss.mean(1, keepdim=True)).effect[:, 0]  # [n], mean query
    signals = {"self-influence": scores.influence.self_influence} | scores.suspects
    rows = [_row(signal, "Spearman with memorization", values, memory.effect) for signal, values in signals.items()]
    mean = scores.influence.influence.mean(1)
    rows.append(_row("influence", "Spearman with influence on the mean query", mean, helpful))
    return Study(
        name="memorization",
        protocol=f"{extent.subsets} models, each on 70 % of the points; median memorization "
        f"{float(memory.effect.median()):.3f}, median standard error {float(memory.error.median()):.3f}; "
        "interval over points",
        rows=tuple(rows),
    )


def oracle_subsets(setting: Setting, extent: Extent) -> Tensor:
    """The subsets that models are trained on, `[M, n]`, bool.

    Raises:
        InfluenceError: They are too few for the number of points.
    """
    subsets = draw_subsets(len(setting.train), extent.subsets, SHARE, setting.config.training.seed + 1)
    check_subsets(subsets)
    return subsets


def _row(signal: str, measure: str, values: Tensor, truth: Tensor) -> Row:
    one = torch.zeros(len(values), dtype=torch.int64)
    return row(signal, measure, bootstrap(lambda rows: spearman(values[rows], truth[rows]), one))
