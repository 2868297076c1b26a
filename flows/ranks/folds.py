"""Out-of-fold models: what models that never saw a point say about its label.

The kept points are dealt into folds; one model per fold and repeat is trained by the recipe of the cycle, or by the
workload's own for these models (`for_folds`), in plain torch, and predicts the points of its fold at the cycle's
checkpoint shares. Points that are not kept are trained on by
no model and are predicted by all. Whole models are shared out over the ranks, and each is trained on one thread, so
that the number of ranks changes only the order of float64 sums.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flows.ranks.kept import NOTHING, Keep
from flows.ranks.plain import train_plainly
from flows.ranks.points import Points
from flows.ranks.rank import Rank
from flows.recipe import save_points, steps_for
from flows.sections.training import TrainingConfig
from flows.workload import Workload, for_folds
from influence.sharding import Share
from storage.files import sha256_json

PREDICT_BATCH = 1024


@dataclass(frozen=True)
class _Fold:
    train: Tensor
    """Places, in manifest order, of the points that the model sees."""
    held: Tensor
    """Places of the points that it predicts."""
    seed: int

    @property
    def digest(self) -> str:
        """Of all three: which points are kept in the second round is known only after the first."""
        return sha256_json([self.train.tolist(), self.held.tolist(), self.seed])


class OutOfFold:
    """Trains fold models and averages what they predict.

    Args:
        workload: Model and loss.
        points: The train set.
        training: The recipe.
        folds: How many.
        rank: This process.
        keep: Where the answers of each model are kept as soon as it has given them.
        share: Of the planned training, after which the baseline was stopped; other models have a training of their own.
    """

    def __init__(
        self,
        workload: Workload,
        points: Points,
        training: TrainingConfig,
        folds: int,
        rank: Rank,
        keep: Keep = NOTHING,
        share: float = 1.0,
    ) -> None:
        self._workload, self._training = for_folds(workload, training)
        self._points, self._folds, self._rank, self._keep = points, folds, rank, keep
        self._round, self._share = 0, share if self._workload is workload else 1.0
        self._place = ("out-of-fold models", 0, 1)

    def log_probabilities(self, kept: Tensor, repeats: int, classes: int) -> Tensor:
        """One round of fold models; every rank must call this together.

        Args:
            kept: Points that may be trained on: `[n]` bool.
            repeats: How often the kept points are dealt anew.
            classes: C.

        Returns:
            Log-probabilities averaged over the models that did not see the point and over their checkpoints: `[n, C]`.
        """
        self._round += 1
        models = self._deal(kept, repeats)
        total = torch.zeros(len(kept), classes, dtype=torch.float64)
        count = torch.zeros(len(kept), dtype=torch.float64)
        mine = Share(self._rank.index, self._rank.world).of(len(models))
        for done, index in enumerate(mine):
            self._place = (f"out-of-fold models, round {self._round}", done, len(mine))
            self._rank.progress(*self._place)
            total[models[index].held] += self._answers(models[index], index, classes)
            count[models[index].held] += 1
        self._rank.sum(total)
        self._rank.sum(count)
        return total / count[:, None]

    def _answers(self, fold: _Fold, index: int, classes: int) -> Tensor:
        """Log-probabilities of the points that a model did not see, averaged over its checkpoints, `[h, C]`."""
        name, of = f"fold-{self._round}-{index:04d}", fold.digest
        known = self._keep.read(name, of)
        if known is None:
            known = {"log_probabilities": self._train(fold, classes)}
            self._rank.meter.enter("keeping the answers")
            self._keep.write(name, known, of)
        return known["log_probabilities"]

    def _deal(self, kept: Tensor, repeats: int) -> list[_Fold]:
        places, rest = kept.nonzero()[:, 0], (~kept).nonzero()[:, 0]
        generator = torch.Generator().manual_seed(self._training.seed + 7919 * self._round)
        models = []
        for repeat in range(repeats):
            dealt = places[torch.randperm(len(places), generator=generator)]
            for fold in range(self._folds):
                held = dealt[fold :: self._folds]
                seen = kept.clone()
                seen[held] = False
                seed = self._training.seed + 1000 * self._round + self._folds * repeat + fold
                models.append(_Fold(seen.nonzero()[:, 0], torch.cat([held, rest]), seed))
        return models

    def _train(self, fold: _Fold, classes: int) -> Tensor:
        rows, total = torch.arange(len(fold.held)), torch.zeros(len(fold.held), classes, dtype=torch.float64)

        def predict(model: nn.Module) -> None:
            self._rank.meter.enter("answers of out-of-fold models")
            for part in rows.split(PREDICT_BATCH):
                logits = self._workload.logits(model, self._points.take(fold.held[part]))  # [b, C]
                total[part] += logits.double().log_softmax(1).cpu()

        training = self._training
        planned = steps_for(training, len(fold.train))
        steps = max(1, round(self._share * planned))
        self._rank.meter.enter("making an out-of-fold model")  # until its first step is done
        save_at = {*(step for step in save_points(training, planned) if step < steps), steps}
        train_plainly(
            self._workload,
            self._points,
            training,
            fold.train,
            fold.seed,
            steps,
            save_at,
            predict,
            planned,
            after=lambda _: self._rank.progress(*self._place),  # however long a model takes
        )
        return total / len(save_at)
