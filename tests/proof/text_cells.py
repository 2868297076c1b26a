"""Flipped labels of a shipped text set: what each signal finds of them, and what removing by it is worth.

A cell is one seed of flips and training. The signals come first, with the points that each would remove, as many as
are wrong; one turn of retrainings without them, a model for each set of points, is a cell of its own.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from flows.ranks.folds import OutOfFold
from influence import (
    Suspicion,
    auc,
    average_precision,
    cheap_signals,
    features,
    knn_votes,
    last,
    mislabeled,
    select,
    two_round,
)
from tests.proof.flip_cells import Alone
from tests.proof.text_models import Bench, Outcome

Q = 0.2  # the page says so; what is shipped now is lower
WORTH = ("loss", "EL2N", "influence", "suspicion")
"""Signals whose removal is judged by retraining; the others are counted by what they find."""
POLICY = "the policy mislabeled"
"""Removes what it would propose, which needs no one to know how many are wrong."""


@dataclass(frozen=True)
class Signals:
    """What was found of the flips.

    Attributes:
        texts: Train points, queries and holdout points.
        wrong: Flipped train points.
        found: AUC and average precision of each signal.
        removed: Places of the points that some signals rank first, as many as are wrong, and other sets beside, among
            them what the policy `mislabeled` would remove.
        noise_rate: As the suspicion estimates it.
        proposed: Points that the policy `mislabeled` would remove; precision: the share of them that is wrong.
        precision: See proposed; None where nothing is proposed.
        seconds: Of CPU, those of a training and of the influence among them.
    """

    texts: tuple[int, int, int]
    wrong: int
    found: dict[str, tuple[float, float]]
    removed: dict[str, list[int]]
    noise_rate: float
    proposed: int
    precision: float | None
    seconds: dict[str, float]


@dataclass(frozen=True)
class Removal:
    """One model for each set of points that was removed: how it does on the clean holdout set."""

    outcomes: dict[str, Outcome]
    seconds: float


def measure_signals(name: str, seed: int, points: int | None, judged: int | None) -> Signals:
    """Train once, and rank the points by every signal."""
    started = time.process_time()
    bench = Bench(name, seed, points, judged)
    wrong, size = bench.wrong, int(bench.wrong.sum())
    models = bench.train(torch.zeros_like(wrong), seed)
    trained = time.process_time() - started
    scores = bench.estimated(models, lambda model: select(model, features, last(bench.scoring.blocks.last or 1)))
    cheap = cheap_signals(bench.logits(models[-1], bench.points), bench.points.labels)
    suspicion, ranked = suspected(bench)
    ranked |= {"loss": cheap.loss, "EL2N": cheap.el2n, "influence": -scores.mean, "self-influence": scores.own}
    proposed = mislabeled(suspicion.posterior, torch.ones_like(wrong), Q).selected
    return Signals(
        texts=(len(bench.points), len(bench.queries), len(bench.holdout)),
        wrong=size,
        found={key: (auc(one, wrong), average_precision(one, wrong)) for key, one in ranked.items()},
        removed=sets_of({key: ranked[key] for key in WORTH}, wrong, seed) | {POLICY: places(proposed)},
        noise_rate=suspicion.noise_rate,
        proposed=int(proposed.sum()),
        precision=float(wrong[proposed].double().mean()) if bool(proposed.any()) else None,
        seconds={"all": time.process_time() - started, "training": trained, "influence": scores.seconds},
    )


def suspected(bench: Bench) -> tuple[Suspicion, dict[str, Tensor]]:
    """Suspicion as a cycle has it, and the two signals that it is made of."""
    labels, everyone, classes = bench.points.labels, bench.points.in_train, len(bench.whole.classes)
    inputs = bench.whole.inputs(bench.points.take(range(len(bench.points))))
    votes = knn_votes(inputs, labels, classes, everyone, bench.scoring.neighbours)
    folds = OutOfFold(bench.whole, bench.points, bench.training, bench.scoring.folds, Alone(0, 1, Path()))
    rounds: list[Tensor] = []

    def out_of_fold(kept: Tensor) -> Tensor:
        rounds.append(folds.log_probabilities(kept, bench.scoring.repeats, classes))
        return rounds[-1]

    found, rows = two_round(out_of_fold, votes, labels, everyone), torch.arange(len(labels))
    first = {"out-of-fold loss": -rounds[0][rows, labels], "kNN": -votes[rows, labels]}
    return found, {"suspicion": found.score, **first}


def sets_of(ranked: Mapping[str, Tensor], wrong: Tensor, seed: int) -> dict[str, list[int]]:
    """What each signal would remove, as many as are wrong; nothing, random points and the truth beside it."""
    size = int(wrong.sum())
    chance = torch.rand(len(wrong), generator=torch.Generator().manual_seed(seed))
    chosen = {
        name: one.argsort(descending=True, stable=True)[:size].sort().values.tolist()
        for name, one in {"random": chance, **ranked}.items()
    }
    return {"nothing": [], **chosen, "the truth": places(wrong)}


def places(chosen: Tensor) -> list[int]:
    """Of the points, bool `[n]`."""
    found: list[int] = chosen.nonzero()[:, 0].tolist()
    return found


def measure_removal(signals: Signals, name: str, seed: int, turn: int) -> Removal:
    """Train without each of the sets, from the same weights and for as many steps; equal sets once."""
    started = time.process_time()
    points, _, judged = signals.texts
    bench, known = Bench(name, seed, points, judged), dict[tuple[int, ...], Outcome]()
    outcomes = {}
    for way, gone in signals.removed.items():
        key = tuple(gone)
        if key not in known:
            known[key] = bench.retrained(removing(gone, points), retraining_seed(seed, turn))
        outcomes[way] = known[key]
    return Removal(outcomes, time.process_time() - started)


def removing(gone: Sequence[int], points: int) -> Tensor:
    """Places as bool `[n]`."""
    removed = torch.zeros(points, dtype=torch.bool)
    removed[torch.tensor(gone, dtype=torch.int64)] = True
    return removed


def retraining_seed(seed: int, turn: int) -> int:
    """Of the weights and the order of one turn, another than that of the model which the signals are of."""
    return 1000 * (seed + 1) + turn
