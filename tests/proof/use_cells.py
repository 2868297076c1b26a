"""What influence is for, on one seed: errors that models learn, copies, single queries, and what may be left out.

Fashion-MNIST, 1,000 points, the MLP and recipe of the LDS proof; EK-FAC over four checkpoints, weight decay as damping.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from flows.workloads.fashion_mnist import FashionMnist
from flows.workloads.images import ImageWorkload
from influence import (
    EKFAC,
    Damping,
    Influence,
    PairScores,
    auc,
    average_precision,
    cheap_signals,
    knn_votes,
    linear_blocks,
    over_checkpoints,
    two_round,
)
from influence.discovery import Trusted, trusted
from influence.redundancy import redundancy
from influence.stability import sign_agreement
from tests.proof.lds_estimators import BATCH, TASK, Batch
from tests.proof.lds_models import CLASSES, Layers, Recipe, accuracies, losses, module, train
from tests.proof.lds_truth import Labelled, labelled

RECIPE = Recipe(0.05, 0.01, 30)
POINTS, QUERIES, TEST = 1000, 300, 8000
WRONG, COPIES = 100, 10
FOLDS, REPEATS, NEIGHBOURS = 5, 2, 15  # as shipped
ASKED, REMOVED = 10, 50  # chosen queries, and points that are removed for one
SHARES = (0.2, 0.4)  # left out as redundant
RETRAINS = 5
Errors = Literal["systematic", "copies"]


@dataclass(frozen=True)
class Sets:
    """Train points with given labels, which of them are wrong [n], trusted queries and clean test points."""

    points: Labelled
    wrong: Tensor
    queries: Labelled
    test: Labelled


@dataclass(frozen=True)
class Signals:
    """What one model says of each point: influence on every query [n, m], on itself, loss and EL2N [n].

    Attributes:
        reference: the queries scored as if they were train points.
        agreement: share of the checkpoints at which the mean influence has the sign of its sum [n].
    """

    influence: Tensor
    own: Tensor
    loss: Tensor
    el2n: Tensor
    reference: Trusted
    agreement: Tensor


@dataclass(frozen=True)
class Uses:
    """What was measured with one seed.

    Attributes:
        found: by errors and signal, AUC and average precision.
        accuracy: by errors and signal, on test points after removing as many as are wrong.
        rise: by signal, of a chosen query's loss when the points that it names are removed, nats.
        left: by share and signal, test accuracy after leaving out what it names as redundant.
        seconds: of CPU.
    """

    found: dict[str, dict[str, tuple[float, float]]]
    accuracy: dict[str, dict[str, float]]
    rise: dict[str, float]
    left: dict[str, dict[str, float]]
    seconds: float


def measure(seed: int) -> Uses:
    """Measure everything with the seed of the split, the planted errors and the training."""
    started = time.process_time()
    kinds: tuple[Errors, ...] = ("systematic", "copies")
    errors = {kind: _errors(kind, seed) for kind in kinds}
    clean = task_of(FashionMnist("mlp", POINTS, QUERIES, TEST, "flips", 0.0, seed))
    signals = signals_of(clean, seed)
    return Uses(
        found={kind: found for kind, (found, _) in errors.items()},
        accuracy={kind: accuracy for kind, (_, accuracy) in errors.items()},
        rise=_rises(clean, signals, seed),
        left=left_out(clean, signals, seed),
        seconds=time.process_time() - started,
    )


def _errors(kind: Errors, seed: int) -> tuple[dict[str, tuple[float, float]], dict[str, float]]:
    """What each signal finds of errors that repeat themselves, and what removing it is worth."""
    sets = _with_errors(kind, seed)
    signals = signals_of(sets, seed)
    labels, everyone = sets.points.labels, torch.ones(POINTS, dtype=torch.bool)
    votes = knn_votes(sets.points.inputs, labels, CLASSES, everyone, NEIGHBOURS)
    ranked = {
        "influence on the queries": -signals.influence.mean(1),
        "suspicion": two_round(out_of_fold(sets, seed), votes, labels, everyone).score,
        "loss": signals.loss,
        "EL2N": signals.el2n,
        "kNN": -votes[torch.arange(POINTS), labels],
    }
    removed = {name: signal.argsort(descending=True, stable=True)[:WRONG] for name, signal in ranked.items()}
    removed |= {"random": _random(POINTS, WRONG, seed), "the truth (oracle)": sets.wrong.nonzero()[:, 0]}
    found = {name: (auc(signal, sets.wrong), average_precision(signal, sets.wrong)) for name, signal in ranked.items()}
    nothing = _accuracy(retrained(sets, [torch.empty(0, dtype=torch.int64)], seed), sets)
    return found, {"nothing": nothing} | _accuracies(sets, removed, seed)


def _rises(sets: Sets, signals: Signals, seed: int) -> dict[str, float]:
    """Mean rise of a chosen query's loss when the 50 points that are said to help it most are removed."""
    asked = _random(QUERIES, ASKED, seed)
    near = torch.cdist(sets.points.inputs, sets.queries.inputs[asked])  # [n, asked]
    alike = sets.points.labels[:, None] == sets.queries.labels[asked]
    drawn = torch.rand(near.shape, generator=torch.Generator().manual_seed(seed))
    named = {
        "influence on the query": signals.influence[:, asked],
        "nearest of its class": (-near).masked_fill(~alike, -torch.inf),
        "random of its class": drawn.masked_fill(~alike, -torch.inf),
        "random": drawn,
    }
    before = _query_losses(retrained(sets, [torch.empty(0, dtype=torch.int64)], seed), sets, asked)[0]  # [asked]
    rises = {}
    for name, score in named.items():
        gone = list(score.topk(REMOVED, dim=0).indices.T)
        after = _query_losses(retrained(sets, gone, seed), sets, asked).diagonal()
        rises[name] = float((after - before).mean())
    return rises


def left_out(sets: Sets, signals: Signals, seed: int) -> dict[str, dict[str, float]]:
    """Test accuracy without a share of clean points, those that a signal calls the least needed."""
    n = len(sets.points.labels)
    needed = {
        "influence, its size over the queries": signals.influence.abs().sum(1),
        "self-influence": signals.own,
        "loss": signals.loss,
        "EL2N": signals.el2n,
        "the policy redundant": least_redundant(sets, signals),
        "random": torch.rand(n, generator=torch.Generator().manual_seed(seed)),
    }
    left = {}
    for share in SHARES:
        count = round(share * n)
        removed = {name: signal.argsort(stable=True)[:count] for name, signal in needed.items()}
        left[f"{share:.0%}"] = _accuracies(sets, removed, seed)
    nothing = _accuracy(retrained(sets, [torch.empty(0, dtype=torch.int64)], seed), sets)
    return {"0%": {"nothing": nothing}, **left}


def least_redundant(sets: Sets, signals: Signals) -> Tensor:
    """As shipped: what is drawn for a point depends on its inputs alone."""
    digests = [sha256(row.numpy().tobytes()).digest() for row in sets.points.inputs]
    keys = torch.tensor([int.from_bytes(digest[:8], "little", signed=True) for digest in digests])
    return redundancy(signals.own, [sets.points.labels], torch.ones(len(keys), dtype=torch.bool), keys)


def _with_errors(kind: Errors, seed: int) -> Sets:
    if kind == "systematic":
        return task_of(FashionMnist("mlp", POINTS, QUERIES, TEST, "systematic", WRONG / POINTS, seed))
    single = POINTS - WRONG + WRONG // COPIES
    sets = task_of(FashionMnist("mlp", single, QUERIES, TEST, "flips", 0.0, seed))
    rows = torch.cat([torch.arange(WRONG // COPIES).repeat(COPIES), torch.arange(WRONG // COPIES, single)])
    labels = sets.points.labels.clone()
    shift = torch.randint(1, CLASSES, (WRONG // COPIES,), generator=torch.Generator().manual_seed(seed))
    labels[: WRONG // COPIES] = (labels[: WRONG // COPIES] + shift) % CLASSES
    points = Labelled(sets.points.inputs[rows], labels[rows])
    return replace(sets, points=points, wrong=torch.arange(POINTS) < WRONG)


def task_of(workload: ImageWorkload) -> Sets:
    """The three sets of a workload whose truth is known."""
    points, truth = workload.points(), workload.truth()
    given = labelled(workload, points)
    true = torch.tensor([truth[int(point)] for point in points.ids])
    return Sets(
        given, given.labels != true, labelled(workload, workload.queries()), labelled(workload, workload.holdout())
    )


def signals_of(sets: Sets, seed: int) -> Signals:
    """The signals of one model, influence summed over its checkpoints."""
    points = sets.points
    checkpoints = train(RECIPE, points.inputs, points.labels, torch.arange(len(points.labels))[None], [seed])
    found, asked = zip(*(_influence(sets, layers) for layers in checkpoints), strict=True)
    with torch.no_grad():
        last = cheap_signals(module(checkpoints[-1], 0)(points.inputs), points.labels)
    ours, theirs = _summed(found), _summed(asked)
    means = torch.stack([one.influence.mean(1) for one in found])
    return Signals(*ours, last.loss, last.el2n, trusted(*theirs), sign_agreement(means))


def _influence(sets: Sets, layers: Layers) -> tuple[PairScores, PairScores]:
    """Of every point and of every query, as if it were one, on every query."""
    model = module(layers, 0)
    blocks = linear_blocks(model)
    with Influence(model, TASK, EKFAC(blocks), blocks) as influence:
        influence.fit(_batches(sets.points), Damping("absolute", RECIPE.weight_decay))
        queries = _batches(sets.queries)
        return influence.pairs(_batches(sets.points), queries), influence.pairs(queries, queries)


def _summed(scores: Sequence[PairScores]) -> tuple[Tensor, Tensor]:
    return over_checkpoints([one.influence for one in scores]), sum(
        (one.self_influence for one in scores), torch.zeros(())
    )


def out_of_fold(sets: Sets, seed: int) -> Callable[[Tensor], Tensor]:
    """Mean log-probabilities by models that were not trained on a point, for `two_round`."""
    points, rounds = sets.points, [0]
    n = len(points.labels)

    def log_probabilities(kept: Tensor) -> Tensor:
        rounds[0] += 1
        total, count = torch.zeros(n, CLASSES, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
        generator = torch.Generator().manual_seed(seed + 7919 * rounds[0])
        for repeat in range(REPEATS):
            dealt = kept.nonzero()[:, 0]
            dealt = dealt[torch.randperm(len(dealt), generator=generator)]
            for fold in range(FOLDS):
                seen = kept.clone()
                seen[dealt[fold::FOLDS]] = False
                held = ~seen & (~kept | (torch.isin(torch.arange(n), dealt[fold::FOLDS])))
                number = 1000 * rounds[0] + FOLDS * repeat + fold + seed
                for layers in train(RECIPE, points.inputs, points.labels, seen.nonzero().T, [number]):
                    with torch.no_grad():
                        total[held] += module(layers, 0)(points.inputs[held]).double().log_softmax(1)
                    count[held] += 1
        return total / count[:, None]

    return log_probabilities


def _accuracies(sets: Sets, removed: Mapping[str, Tensor], seed: int) -> dict[str, float]:
    trained = retrained(sets, list(removed.values()), seed)
    found = accuracies(trained, sets.test.inputs, sets.test.labels).unflatten(0, (-1, RETRAINS)).mean(1)
    return dict(zip(removed, found.tolist(), strict=True))


def _accuracy(trained: Layers, sets: Sets) -> float:
    return float(accuracies(trained, sets.test.inputs, sets.test.labels).mean())


def _query_losses(trained: Layers, sets: Sets, asked: Tensor) -> Tensor:
    """Mean over retrainings, [sets, asked]."""
    found = losses(trained, sets.queries.inputs[asked], sets.queries.labels[asked])
    return found.double().unflatten(0, (-1, RETRAINS)).mean(1)


def retrained(sets: Sets, removed: Sequence[Tensor], seed: int) -> Layers:
    """RETRAINS models without each of these sets, all of one size, for as many steps each."""
    n = len(sets.points.labels)
    members = torch.stack([_without(gone, n) for gone in removed]).repeat_interleave(RETRAINS, dim=0)
    seeds = [10_000 * (seed + 1) + turn for _ in removed for turn in range(RETRAINS)]
    epochs = round(RECIPE.epochs * n / members.shape[1])
    return train(replace(RECIPE, epochs=epochs), sets.points.inputs, sets.points.labels, members, seeds)[-1]


def _without(gone: Tensor, n: int) -> Tensor:
    kept = torch.ones(n, dtype=torch.bool)
    kept[gone] = False
    return kept.nonzero()[:, 0]


def _random(count: int, size: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed + 31))[:size]


def _batches(points: Labelled) -> list[Batch]:
    return list(zip(points.inputs.split(BATCH), points.labels.split(BATCH), strict=True))


def kept(seed: int, folder: Path) -> Uses:
    """The measurement of a seed; not made again if the folder holds it."""
    path = folder / f"{seed}.json"
    if not path.exists():
        path.write_text(json.dumps(asdict(measure(seed)), indent=1))
        print(f"seed {seed}", flush=True)
    raw = json.loads(path.read_text())
    pairs = {kind: {name: tuple(pair) for name, pair in found.items()} for kind, found in raw["found"].items()}
    return Uses(**(raw | {"found": pairs}))
