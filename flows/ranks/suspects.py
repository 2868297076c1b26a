"""Suspicion of every point from models that never saw it, its nearest neighbours and the nearest queries."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from flows.asking import inputs_of
from flows.plans import ScorePlan
from flows.ranks.folds import OutOfFold
from flows.ranks.kept import Keep
from flows.ranks.points import Points
from flows.ranks.rank import Rank
from flows.workload import Workload, seeded_model
from influence.conformity import Conformity, label_conformity
from influence.discovery import mislabeled
from influence.sharding import Share
from influence.suspicion import Suspicion, knn_votes, two_round

READ_BATCH = 1024
NUMBERS = ("signal_out_of_fold_loss", "signal_knn", "signal_conformity", "suspicion", "posterior", "mislabeled_q")


@dataclass(frozen=True)
class Suspects:
    """What is suspected of each label, the two signals that the suspicion is made of, and what the queries say.

    Attributes:
        suspicion: The two-round stack.
        out_of_fold_loss: Of the given label, first round, in nats `[n]`.
        disagreement: Share of the nearest neighbours with another given label `[n]`.
        conformity: Of the given labels, to those of the nearest queries.
    """

    suspicion: Suspicion
    out_of_fold_loss: Tensor
    disagreement: Tensor
    conformity: Conformity


def suspects(plan: ScorePlan, workload: Workload, points: Points, queries: Points, rank: Rank, keep: Keep) -> Suspects:
    """Train the fold models and stack what they and the neighbours say; every rank must call this together.

    Args:
        plan: The recipe of the models, folds, repeats and neighbours.
        workload: Model and loss.
        points: The train set; points removed earlier are scored, but neither train nor vote.
        queries: The query set.
        rank: This process.
        keep: Where the fold models' answers are kept.
    """
    config = plan.config.scoring
    model = seeded_model(workload, plan.config.training.seed).to(points.device)
    with torch.no_grad():
        classes = workload.logits(model, points.take(range(1))).shape[1]
    inputs, trusted = _inputs(workload, points), _inputs(workload, queries)  # [n, d], [m, d]
    folds = OutOfFold(workload, points, plan.config.training, config.folds, rank, keep, plan.share)
    rounds: list[Tensor] = []

    def out_of_fold(kept: Tensor) -> Tensor:
        rounds.append(folds.log_probabilities(kept, config.repeats, classes))
        rank.progress("weighing the signals", 0, 1)
        return rounds[-1]

    share = Share(rank.index, rank.world)
    rank.progress("finding the neighbours", 0, 1)
    counted = knn_votes(inputs, points.labels, classes, points.in_train, config.neighbours, share, rank.sum)
    votes = counted.cpu()  # [n, C]
    fits = label_conformity(inputs, points.labels, trusted, queries.labels, share=share, all_reduce=rank.sum)
    found = two_round(out_of_fold, votes, points.labels, points.in_train)
    given = one_hot(points.labels, classes)
    return Suspects(
        suspicion=found,
        out_of_fold_loss=-(rounds[0] * given).sum(1),
        disagreement=1 - (votes * given).sum(1) / config.neighbours,
        conformity=Conformity(fits.points.cpu(), fits.queries.cpu()),
    )


def _inputs(workload: Workload, points: Points) -> Tensor:
    parts = torch.arange(len(points)).split(READ_BATCH)
    return torch.cat([inputs_of(workload, points.take(part)) for part in parts])


def suspicion_columns(found: Suspects | None, in_train: Tensor, q: float) -> dict[str, Tensor]:
    """Columns of the scores, each `[n]`; without classes nothing is suspected, and they hold NaN and -1."""
    if found is None:
        empty = torch.full((len(in_train),), torch.nan, dtype=torch.float64)
        return dict.fromkeys(NUMBERS, empty) | {"suggested_label": torch.full((len(in_train),), -1)}
    numbers = (
        found.out_of_fold_loss,
        found.disagreement,
        found.conformity.points,
        found.suspicion.score,
        found.suspicion.posterior,
        mislabeled(found.suspicion.posterior, in_train, q).q_value,
    )
    return dict(zip(NUMBERS, numbers)) | {"suggested_label": found.suspicion.suggested_label}
