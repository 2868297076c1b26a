"""The study `pruning`: models retrained without the points that a signal ranks highest.

Influence is taken from one half of the queries; the other half judges. The holdout set is not read: every look at it
is counted, and a validation is not a reason to spend one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flows.validation.bench import Bench
from flows.validation.results import Row, Study, row
from flows.validation.subsets import Retraining
from influence.validation import bootstrap

SHARES = (0.05, 0.1, 0.2, 0.4)
NOTHING = "nothing"


def study(bench: Bench) -> Study:
    """Accuracy and loss on the judging queries after removing 5, 10, 20 and 40 % by each signal."""
    removals = {(NOTHING, 0.0): [()] * bench.extent.seeds} | {
        (signal, share): _removed(bench, ranking, share)
        for signal, ranking in _rankings(bench).items()
        for share in SHARES
    }
    first, steps = bench.setting.config.training.seed, bench.setting.steps
    jobs = [Retraining(first + turn, steps, gone) for cuts in removals.values() for turn, gone in enumerate(cuts)]
    found = bench.pool.outcomes("models on pruned sets", jobs)
    measured, judging = bench.setting.halves
    shape = (len(removals), bench.extent.seeds)
    loss = found.query_loss[:, judging].double().unflatten(0, shape).mean(1)  # [k, j], mean over seeds
    correct = found.query_correct[:, judging].double().unflatten(0, shape).mean(1)
    place = {key: at for at, key in enumerate(removals)}
    rows = [
        made
        for measure, values in (("accuracy", correct), ("loss (nats)", loss))
        for (signal, share), at in place.items()
        for made in _row(signal, measure, values[at], share)
    ]
    rows += [
        made
        for (signal, share), at in place.items()
        if signal not in (NOTHING, "random")
        for made in _row(signal, "loss below random (nats)", loss[place["random", share]] - loss[at], share)
    ]
    return Study(
        name="pruning",
        protocol=f"retrained with {bench.extent.seeds} seeds, same steps; influence from {len(measured)} queries, "
        f"judged on the {len(judging)} others; interval over queries",
        rows=tuple(rows),
    )


def _rankings(bench: Bench) -> dict[str, Tensor | None]:
    """Each signal, larger = removed first; None draws at random, anew for every seed."""
    measured = bench.setting.halves[0]
    harm = -bench.scores.influence.influence[:, measured].mean(1)
    return {"influence": harm, **bench.scores.suspects, "random": None}


def _removed(bench: Bench, ranking: Tensor | None, share: float) -> list[tuple[int, ...]]:
    """The points that go, for each seed."""
    n, seeds = len(bench.setting.train), range(bench.extent.seeds)
    if ranking is None:
        draws = [torch.randperm(n, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    else:
        draws = [ranking.argsort(descending=True, stable=True) for _ in seeds]
    return [tuple(sorted(draw[: round(share * n)].tolist())) for draw in draws]


def _row(signal: str, measure: str, by_query: Tensor, share: float) -> list[Row]:
    one = torch.zeros(len(by_query), dtype=torch.int64)
    return [row(signal, measure, bootstrap(lambda rows: float(by_query[rows].mean()), one), share)]
