"""Where influence earns its place: one kind of trouble with known truth and one seed, removed in every way.

Fashion-MNIST, the MLP and recipe of the LDS proof, signals as in use_cells.py. A policy removes what it chooses at its
own threshold; a signal removes as many as are wrong, which only a test can know.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flows.sections.curation import PruningConfig
from flows.workloads.fashion_mnist import FashionMnist
from influence import Conformity, knn_votes, label_conformity, stratified_error, two_round
from influence.discovery import Influences, harmful, mislabeled
from storage.files import atomic_write_text
from tests.proof.lds_models import CLASSES, accuracies, losses
from tests.proof.use_cells import NEIGHBOURS, Sets, Signals, left_out, out_of_fold, retrained, signals_of, task_of

POINTS, QUERIES, TEST = 2000, 2000, 8000  # the whole test set, split
SHIPPED = PruningConfig()
ALONE, AGREEING = "harmful, influence alone", "harmful, where 3 of 4 checkpoints agree"
KINDS: Mapping[str, Mapping[str, Any]] = {
    "random": {"corruption": "flips", "rate": 0.1},
    "systematic": {"corruption": "systematic", "rate": 0.1},
    "few queries": {"corruption": "systematic", "rate": 0.1, "queries": 500},
    "both": {"corruption": "mixed", "rate": 0.2},
    "domains": {"corruption": "foreign", "rate": 0.2},
    "clean": {"rate": 0.0},
}


@dataclass(frozen=True)
class Removed:
    """A set of points removed, and the models trained without it: means over RETRAINS.

    Attributes:
        precision: Share of the removed that are wrong; None where nothing was removed.
        recall: Share of the wrong that were removed; None where nothing is wrong.
        accuracy: On clean test points.
        loss: The same, in nats.
    """

    size: int
    precision: float | None
    recall: float | None
    accuracy: float
    loss: float


@dataclass(frozen=True)
class Earned:
    """What was measured of one kind with one seed.

    Attributes:
        removed: By policy at its own threshold ("harmful"), and by signal at the true count ("loss, as many").
        left: On clean data, test accuracy by share and signal (`use_cells.left_out`).
        seconds: Of CPU.
    """

    removed: dict[str, Removed]
    left: dict[str, dict[str, float]]
    seconds: float


def measure(kind: str, seed: int) -> Earned:
    """Measure a kind with the seed of the split, the planted errors and the training."""
    started = time.process_time()
    sets = task_of(FashionMnist("mlp", POINTS, seed=seed, **{"queries": QUERIES, "holdout": TEST} | KINDS[kind]))
    signals = signals_of(sets, seed)
    chosen = _chosen(sets, signals, seed)
    removed = {name: _removed(sets, gone, seed) for name, gone in chosen.items()}
    left = {} if bool(sets.wrong.any()) else left_out(sets, signals, seed)
    return Earned(removed, left, time.process_time() - started)


def _chosen(sets: Sets, signals: Signals, seed: int) -> dict[str, Tensor]:
    """The points that each way removes, bool [n]."""
    labels, everyone = sets.points.labels, torch.ones(POINTS, dtype=torch.bool)
    votes = knn_votes(sets.points.inputs, labels, CLASSES, everyone, NEIGHBOURS)
    suspicion = two_round(out_of_fold(sets, seed), votes, labels, everyone)
    conformity = label_conformity(sets.points.inputs, labels, sets.queries.inputs, sets.queries.labels)
    harm = _harmful(sets, signals, conformity)
    wrong = mislabeled(suspicion.posterior, everyone, SHIPPED.mislabeled_q).selected
    chosen = {
        "nothing": ~everyone,
        "harmful": harm,
        AGREEING: harm & (signals.agreement >= 0.75),
        ALONE: _harmful(sets, signals, None),
        "mislabeled": wrong,
        "harmful and mislabeled": harm | wrong,
    }
    if not bool(sets.wrong.any()):
        return chosen
    ranked = {
        "influence": -signals.influence.mean(1),
        "influence / sqrt(self-influence)": -signals.influence.mean(1) / signals.own.sqrt(),
        "conformity": -conformity.points,
        "suspicion": suspicion.score,
        "loss": signals.loss,
        "EL2N": signals.el2n,
        "random": torch.rand(POINTS, generator=torch.Generator().manual_seed(seed)),
    }
    for name, signal in ranked.items():
        first = signal.argsort(descending=True, stable=True)[: int(sets.wrong.sum())]
        chosen[f"{name}, as many"] = torch.zeros(POINTS, dtype=torch.bool).index_fill_(0, first, True)
    return chosen | {"the truth": sets.wrong}


def _harmful(sets: Sets, signals: Signals, conformity: Conformity | None) -> Tensor:
    """What the policy of this name proposes, bool [n]."""
    error = stratified_error(signals.influence, sets.queries.labels)
    influences = Influences(signals.influence.mean(1), error, signals.own)
    everyone = torch.ones(len(signals.own), dtype=torch.bool)
    return harmful(influences, signals.reference, everyone, SHIPPED.harmful_q, conformity).selected


def _removed(sets: Sets, gone: Tensor, seed: int) -> Removed:
    hit, size, wrong = (int(chosen.sum()) for chosen in (gone & sets.wrong, gone, sets.wrong))
    trained = retrained(sets, [gone.nonzero()[:, 0]], seed)
    test = sets.test
    return Removed(
        size=size,
        precision=hit / size if size else None,
        recall=hit / wrong if wrong else None,
        accuracy=float(accuracies(trained, test.inputs, test.labels).mean()),
        loss=float(losses(trained, test.inputs, test.labels).mean()),
    )


def kept(kind: str, seed: int, folder: Path) -> Earned:
    """The measurement of a kind and seed; not made again if the folder holds it."""
    path = folder / f"{kind}-{seed}.json"
    if not path.exists():
        atomic_write_text(path, json.dumps(asdict(measure(kind, seed)), indent=1))
        print(f"{kind}, seed {seed}", flush=True)
    raw = json.loads(path.read_text())
    return Earned(**(raw | {"removed": {name: Removed(**one) for name, one in raw["removed"].items()}}))
