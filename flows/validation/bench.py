"""What every study works with: the setting, the pool of models, and the scores that are judged."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from flows.asking import has_classes
from flows.errors import BadInput
from flows.launch import Progress
from flows.ranks.plain import train_plainly
from flows.recipe import save_points
from flows.validation.estimators import configured, gradient_dot, swept
from flows.validation.models import READ_BATCH
from flows.validation.pool import Pool
from flows.validation.setting import Setting
from influence import PairScores, cheap_signals

LEAST = {"subsets": 4, "retrains": 2, "seeds": 1}


@dataclass(frozen=True)
class Extent:
    """How much is retrained.

    Attributes:
        subsets: Random subsets of the points, in `lds` and `memorization`.
        retrains: Models for each subset in `lds`, and for each point in `loo`.
        seeds: Models for each removal in `pruning`.
    """

    subsets: int = 100
    retrains: int = 5
    seeds: int = 3

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            if getattr(self, name) < least:
                raise BadInput(f"--{name} {getattr(self, name)}: give at least {least}")


@dataclass(frozen=True)
class Scores:
    """What is judged, of one model trained by the recipe.

    Attributes:
        influence: Of the configured estimator.
        gradient_dot: Of the last checkpoint, for comparison `[n, m]`.
        suspects: Signals by name, larger = more likely a wrong label `[n]`.
    """

    influence: PairScores
    gradient_dot: Tensor
    suspects: dict[str, Tensor]


class Bench:
    """The setting, its models and its scores, computed when a study first asks for them.

    Args:
        setting: Workload, recipe and data.
        extent: How much is retrained.
        pool: Trains models.
        show: Shows progress.
        suspicion: Of each point `[n]`, where a cycle has scored this train set.

    Attributes:
        score: The configured estimator.
        sweep: The same under other dampings, of any setting.
    """

    def __init__(
        self,
        setting: Setting,
        extent: Extent,
        pool: Pool,
        show: Callable[[Progress], None],
        suspicion: Tensor | None = None,
    ) -> None:
        self.setting, self.extent, self.pool, self.show = setting, extent, pool, show
        self.score, self.sweep = configured(setting), swept
        self._suspicion = suspicion

    @cached_property
    def scores(self) -> Scores:
        """The signals of the first-seed model and its checkpoints."""
        self.show(Progress("influence", 0, 1))
        checkpoints = self.checkpoints
        suspects: dict[str, Tensor] = {}
        if has_classes(self.setting.workload):
            cheap = cheap_signals(logits_of(self.setting, checkpoints[-1]), self.setting.train.labels)
            suspects |= {"loss": cheap.loss, "EL2N": cheap.el2n}
        if self._suspicion is not None:
            suspects["suspicion"] = self._suspicion
        scores = Scores(self.score(checkpoints), gradient_dot(self.setting, checkpoints[-1]), suspects)
        self.show(Progress("influence", 1, 1))
        return scores

    @cached_property
    def checkpoints(self) -> list[nn.Module]:
        """Of the first-seed model, the last being the model."""
        return trained(self.setting)


def trained(setting: Setting) -> list[nn.Module]:
    """Train a model on everything by the recipe, and give its checkpoints."""
    training = setting.config.training
    kept: list[nn.Module] = []
    train_plainly(
        setting.workload,
        setting.train,
        training,
        torch.arange(len(setting.train)),
        training.seed,
        setting.steps,
        save_points(training, setting.steps),
        lambda model: kept.append(copy.deepcopy(model)),
    )
    return kept


def logits_of(setting: Setting, model: nn.Module) -> Tensor:
    """What a model says of every train point: `[n, C]`."""
    parts = torch.arange(len(setting.train)).split(READ_BATCH)
    with torch.no_grad():
        return torch.cat([setting.workload.logits(model, setting.train.take(part)) for part in parts])
