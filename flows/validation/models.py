"""One retrained model, reduced to what it says of every train point and query."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from torch import Tensor, nn

from flows.asking import at_a_time, has_classes
from flows.ranks.plain import train_plainly
from flows.ranks.points import Points
from flows.validation.setting import Setting
from flows.validation.subsets import Retraining
from flows.workload import Workload, check_losses
from storage.files import atomic_write_bytes

READ_BATCH = 1024


@dataclass(frozen=True)
class Outcome:
    """What one model says, or several when stacked in front: losses in nats, float32, and whether it is right, bool.

    Without classes nothing is right or wrong: empty.
    """

    train_loss: Tensor
    train_correct: Tensor
    query_loss: Tensor
    query_correct: Tensor

    def write(self, path: Path) -> None:
        """Write a small file, whole or not at all."""
        atomic_write_bytes(
            path, safetensors.torch.save({name: value.contiguous() for name, value in vars(self).items()})
        )

    @staticmethod
    def read(path: Path) -> Outcome:
        """Read what `write` wrote."""
        return Outcome(**safetensors.torch.load_file(path))

    @staticmethod
    def stack(outcomes: list[Outcome]) -> Outcome:
        """Outcomes of k models, each tensor with k in front."""
        columns = zip(*(vars(outcome).values() for outcome in outcomes), strict=True)
        return Outcome(*(torch.stack(column) for column in columns))


def retrain(setting: Setting, job: Retraining) -> Outcome:
    """Train one model and ask it about every point.

    Raises:
        BadInput: A loss is not finite; names the point.
    """
    kept = torch.ones(len(setting.train), dtype=torch.bool)
    kept[list(job.left_out)] = False
    workload, points = _skipping(setting, job.skipped) if job.skipped is not None else (setting.workload, setting.train)
    outcomes: list[Outcome] = []
    train_plainly(
        workload,
        points,
        setting.config.training,
        kept.nonzero()[:, 0],
        job.seed,
        job.steps,
        {job.steps},
        lambda model: outcomes.append(_ask(setting, model)),
    )
    return outcomes[0]


def _ask(setting: Setting, model: nn.Module) -> Outcome:
    return Outcome(*_said(setting.workload, setting.train, model), *_said(setting.workload, setting.queries, model))


def _said(workload: Workload, points: Points, model: nn.Module) -> tuple[Tensor, Tensor]:
    losses, correct = [], [torch.zeros(0, dtype=torch.bool)]
    for part in torch.arange(len(points)).split(at_a_time(workload, READ_BATCH)):
        batch = points.take(part)
        losses.append(workload.loss(model, batch).float())
        check_losses(losses[-1], part, points.ids)
        if has_classes(workload):
            correct.append(workload.logits(model, batch).argmax(1) == workload.labels(batch))
    return torch.cat(losses), torch.cat(correct)


def _skipping(setting: Setting, place: int) -> tuple[Workload, Points]:
    """Workload and points of a training in which the loss of the point at `place` weighs nothing."""
    stand_in = _Skipping(setting, place)
    return cast(Workload, stand_in), cast(Points, stand_in)  # training asks for a model, losses and batches alone


class _Skipping:
    def __init__(self, setting: Setting, place: int) -> None:
        self._setting, self._place = setting, place

    @property
    def keys(self) -> Tensor:
        return self._setting.train.keys

    @property
    def device(self) -> torch.device:
        return self._setting.train.device

    def model(self) -> nn.Module:
        return self._setting.workload.model()

    def take(self, places: Tensor) -> tuple[Any, Tensor]:
        return self._setting.train.take(places), places != self._place

    def loss(self, model: nn.Module, batch: tuple[Any, Tensor]) -> Tensor:
        return self._setting.workload.loss(model, batch[0]) * batch[1]
