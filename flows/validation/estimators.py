"""The estimators that are validated, as functions of the checkpoints of one model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor, nn

from flows.asking import task_of
from flows.estimators import approximation, damping_of
from flows.ranks.blocks import chosen_blocks, measure_energies
from flows.ranks.points import Points
from flows.ranks.rank import Alone
from flows.recipe import horizon
from flows.validation.setting import Setting
from influence import Blocks, Damping, Fisher, Influence, PairScores, Reader, Share, Task, each, grand
from influence.factored import dots, total

Score = Callable[[Sequence[nn.Module]], PairScores]
"""Scores every train point against every query from the checkpoints of one model, the last being the model."""


def configured(setting: Setting) -> Score:
    """The estimator of the configuration, summed over the checkpoints."""

    def score(checkpoints: Sequence[nn.Module]) -> PairScores:
        energies = _energies(setting, checkpoints[-1])
        return reduce(
            add, [_pairs(setting, model, energies, [1.0], number)[0] for number, model in enumerate(checkpoints)]
        )

    return score


def swept(setting: Setting, checkpoints: Sequence[nn.Module], times: Sequence[float]) -> Tensor:
    """Influence of the configured estimator at each checkpoint alone, with its damping and so many times it.

    Returns:
        `[checkpoints, times, n, m]`, nats, positive = helpful.
    """
    energies = _energies(setting, checkpoints[-1])
    return torch.stack(
        [
            torch.stack([pairs.influence for pairs in _pairs(setting, model, energies, times, number, own=False)])
            for number, model in enumerate(checkpoints)
        ]
    )


def _pairs(
    setting: Setting,
    model: nn.Module,
    energies: Mapping[str, float],
    times: Sequence[float],
    checkpoint: int,
    *,
    own: bool = True,
) -> list[PairScores]:
    """Under so many times the configured damping each; the curvature is fitted once."""
    config = setting.config
    scoring, training = config.scoring, config.training
    blocks = _blocks(setting, model, energies)
    chosen = approximation(config, blocks, Share(0, 1), checkpoint)
    fisher = Fisher(scoring.fisher, seed=training.seed)
    damping = damping_of(config, scoring.estimator, scoring.damping, horizon(training, setting.steps, setting.steps))
    first, *others = (_times(damping, factor) for factor in times)
    with Influence(model, _task(setting), chosen.curvature, blocks, fisher, None, chosen.compressor) as influence:
        train, queries = _Batches(setting.train, scoring.chunk), _Batches(setting.queries, scoring.chunk)
        influence.fit(train, first)
        found = [influence.pairs(train, queries, own=own)]
        for other in others:
            chosen.curvature.finish(other)
            found.append(influence.pairs(train, queries, own=own))
    return found


def _times(damping: Damping, factor: float) -> Damping:
    """So many times what is added to the eigenvalues."""
    if damping.kind == "horizon":
        return Damping("horizon", damping.value / factor, factor * damping.weight_decay)
    return Damping(damping.kind, factor * damping.value)


def gradient_dot(setting: Setting, model: nn.Module) -> Tensor:
    """Influence without a curvature, on the same blocks, up to a factor: `[n, m]`."""
    with Reader(model, _task(setting), _blocks(setting, model, _energies(setting, model))) as reader:
        batches = _Batches(setting.queries, setting.config.scoring.chunk)
        queries = each(map(reader.queries, batches), len(setting.queries))
        rows = [
            total(reader.losses(batch).losses, lambda name, factor: dots(factor, queries.gradients[name]))
            for batch in _Batches(setting.train, setting.config.scoring.chunk)
        ]
    return torch.cat(rows) * queries.doubt


def gradient_norms(setting: Setting, model: nn.Module) -> Tensor:
    """Of each point's loss on the same blocks (GraNd): `[n]`."""
    with Reader(model, _task(setting), _blocks(setting, model, _energies(setting, model))) as reader:
        return torch.cat(
            [grand(reader.losses(batch).losses) for batch in _Batches(setting.train, setting.config.scoring.chunk)]
        )


def _energies(setting: Setting, model: nn.Module) -> Mapping[str, float]:
    return measure_energies(model, setting.workload, setting.train, Alone(lambda *_: None))


def _blocks(setting: Setting, model: nn.Module, energies: Mapping[str, float]) -> Blocks:
    return chosen_blocks(model, setting.workload, setting.config.scoring.blocks, energies)


def _task(setting: Setting) -> Task[Any]:
    return task_of(setting.workload)


@dataclass(frozen=True)
class _Batches:
    """Batches of a set in its order, as often as they are asked for."""

    points: Points
    size: int

    def __iter__(self) -> Iterator[Any]:
        for places in torch.arange(len(self.points)).split(self.size):
            yield self.points.take(places)
