"""The study `memorization`: the signals against what models with and without each point make of it.

The oracle is Feldman and Zhang's (arXiv 2008.03703), with the probability of the given label as the outcome, which has
less noise than being right. The proxies are means over the checkpoints; for held-out retraining the model is trained on
with the queries alone, by the recipe.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from flows.ranks.plain import train_plainly
from flows.recipe import steps_for
from flows.validation.bench import Bench, Extent, logits_of
from flows.validation.estimators import gradient_norms
from flows.validation.models import READ_BATCH
from flows.validation.results import Row, Study, row
from flows.validation.setting import Setting
from flows.validation.subsets import draw_subsets, subset_retrainings
from flows.workload import Workload
from influence.learning import learning_signals
from influence.oracle import check_subsets, subset_influence, subset_memorization
from influence.proxies import held_out_retrain, loss_curvature
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
    signals |= proxies(bench.setting, bench.checkpoints)
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


def proxies(setting: Setting, checkpoints: Sequence[nn.Module]) -> dict[str, Tensor]:
    """Of the points, `[n]` each, larger = more memorized; no loss curvature without a single floating input.

    Args:
        setting: Workload, recipe and data.
        checkpoints: Of one training, the last being the model.
    """
    logits = torch.stack([logits_of(setting, model) for model in checkpoints])  # [K, n, C]
    learned = learning_signals(logits, setting.train.labels)
    found = {
        "GraNd": gradient_norms(setting, checkpoints[-1]),
        "1 - confidence": 1 - learned.confidence,
        "1 - largest probability": 1 - learned.max_probability,
        "entropy": learned.entropy,
        "1 - accuracy": 1 - learned.accuracy,
        "held-out retrain": held_out_retrain(logits[-1], logits_of(setting, _trained_on(setting, checkpoints[-1]))),
    }
    if _floating(tree_leaves(setting.train.take(range(1)))) is not None:
        found["loss curvature"] = torch.stack([_curvature(setting, model) for model in checkpoints]).mean(0)
    return found


def _trained_on(setting: Setting, model: nn.Module) -> nn.Module:
    """The model after as many epochs on the queries as it had on the points."""
    training, queries = setting.config.training, setting.queries
    steps = steps_for(training, len(queries))
    every = torch.arange(len(queries))
    kept: list[nn.Module] = []
    workload = cast(Workload, _Continued(setting.workload, model))  # training asks for a model and losses alone
    train_plainly(
        workload,
        queries,
        training,
        every,
        training.seed,
        steps,
        {steps},
        lambda found: kept.append(copy.deepcopy(found)),
    )
    return kept[0]


class _Continued:
    """A workload whose new models are copies of one that is trained."""

    def __init__(self, workload: Workload, model: nn.Module) -> None:
        self._model, self.loss = model, workload.loss

    def model(self) -> nn.Module:
        return copy.deepcopy(self._model).train()


def _curvature(setting: Setting, model: nn.Module) -> Tensor:
    """Of the loss in the inputs, `[n]`."""
    parts = torch.arange(len(setting.train)).split(READ_BATCH)
    return torch.cat([_curvature_of(setting.workload, model, setting.train.take(part)) for part in parts])


def _curvature_of(workload: Workload, model: nn.Module, batch: Any) -> Tensor:
    leaves, structure = tree_flatten(batch)
    place = cast(int, _floating(leaves))

    def losses(inputs: Tensor) -> Tensor:
        moved = [inputs if at == place else leaf for at, leaf in enumerate(leaves)]
        return workload.loss(model, tree_unflatten(moved, structure))

    return loss_curvature(losses, leaves[place])


def _floating(leaves: Sequence[Any]) -> int | None:
    """Which leaf of a batch holds the inputs: the only floating tensor."""
    places = [at for at, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    return places[0] if len(places) == 1 else None


def _row(signal: str, measure: str, values: Tensor, truth: Tensor) -> Row:
    one = torch.zeros(len(values), dtype=torch.int64)
    return row(signal, measure, bootstrap(lambda rows: spearman(values[rows], truth[rows]), one))
