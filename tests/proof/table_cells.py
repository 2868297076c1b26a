"""One cell of the estimators' tables: a row, a task and a seed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from influence import auc, average_precision, cheap_signals
from influence.validation import lds
from tests.proof.lds_truth import POINTS, Labelled, own_subsets, subsets
from tests.proof.table_models import said
from tests.proof.table_tasks import TASKS, Sets, accuracy, checkpoints, fit, judges, owners, sets, with_flips
from tests.proof.table_ways import Case, Found, Way

AGAIN = 2  # models trained after each removal
BASELINES = ("loss", "EL2N", "random", "the truth (oracle)")


@dataclass(frozen=True)
class Retrained:
    """Folders of what was retrained: here, and by the LDS proof."""

    folder: Path
    settled: Path


@dataclass(frozen=True)
class Cell:
    """What was measured.

    Attributes:
        lds: on the halves that judge, by the recipe's damping and by the chosen one; none for a baseline.
        multiple: of the damping, that was chosen.
        found: AUC and average precision of the flips, by influence on the clean queries and by self-influence.
        gain: of test accuracy, when as many points as are flipped are removed by influence on the clean queries; none
            where the LDS alone is asked for.
    """

    lds: tuple[float, float] | None
    multiple: float | None
    found: dict[str, tuple[float, float]]
    gain: float | None


def kept(way: Way | str, name: str, task: str, seed: int, retrained: Retrained, folder: Path) -> Cell:
    """The cell of a row or of a baseline; not measured again if the folder holds it."""
    path = folder / f"{task}-{seed}-{name.replace(' ', '_').replace('/', '_')}.json"
    if not path.exists():
        cell = baseline(way, task, seed) if isinstance(way, str) else measure(way, task, seed, retrained)
        path.write_text(json.dumps(asdict(cell), indent=1))
        print(path.stem, cell, flush=True)
    raw = json.loads(path.read_text())
    found = {signal: tuple(pair) for signal, pair in raw["found"].items()}
    return Cell(**(raw | {"found": found, "lds": None if raw["lds"] is None else tuple(raw["lds"])}))


def measure(way: Way, task: str, seed: int, retrained: Retrained) -> Cell:
    """Of a row; what a compressor costs is told by its LDS alone."""
    chosen, scores = _chosen(way, task, seed, retrained)
    if way.lds_alone:
        return Cell(scores, chosen, {}, None)
    case, wrong = _flipped(task, seed)
    [found] = way.score(case, (chosen,), True)
    signals = {"influence": -found.pairs.mean(1)}
    if found.own is not None:
        signals["self-influence"] = found.own
    return Cell(scores, chosen, _detected(signals, wrong), _gain(task, seed, signals["influence"]))


def baseline(name: str, task: str, seed: int) -> Cell:
    """Of a cheap signal, of chance, or of the truth."""
    case, wrong = _flipped(task, seed)
    [logits] = said(case.checkpoints[-1:], case.points.inputs)
    cheap = cheap_signals(logits, case.points.labels)
    drawn = torch.rand(POINTS, generator=torch.Generator().manual_seed(seed + 97))
    signal = dict(zip(BASELINES, (cheap.loss, cheap.el2n, drawn, wrong.double()), strict=True))[name]
    return Cell(None, None, _detected({"influence": signal}, wrong), _gain(task, seed, signal))


def _chosen(way: Way, task: str, seed: int, retrained: Retrained) -> tuple[float, tuple[float, float]]:
    """The damping that own halves choose, and the LDS by the recipe's and by that."""
    found = way.score(clean(task, seed), way.multiples, False)
    judged = [_lds(one, subsets(), judges(task, retrained.folder, retrained.settled).mean(1)) for one in found]
    own = [_lds(one, own_subsets(), owners(task, retrained.folder, retrained.settled)) for one in found]
    best = max(range(len(found)), key=own.__getitem__)
    return way.multiples[best], (judged[0], judged[best])


def _lds(found: Found, halves: Tensor, losses: Tensor) -> float:
    return float(lds(found.pairs, halves, losses).mean())


def _detected(signals: Mapping[str, Tensor], wrong: Tensor) -> dict[str, tuple[float, float]]:
    return {name: (auc(signal, wrong), average_precision(signal, wrong)) for name, signal in signals.items()}


def _gain(task: str, seed: int, signal: Tensor) -> float:
    """Of accuracy over removing nothing, with as many steps."""
    flipped, wrong = _flipped_sets(task, seed)
    kept = signal.argsort(descending=True, stable=True)[int(wrong.sum()) :].sort().values
    return _accuracy(task, flipped, kept, seed) - _before(task, seed)


@cache
def _before(task: str, seed: int) -> float:
    return _accuracy(task, _flipped_sets(task, seed)[0], torch.arange(POINTS), seed)


def _accuracy(task: str, known: Sets, rows: Tensor, seed: int) -> float:
    seeds = [10_000 * (seed + 1) + turn for turn in range(AGAIN)]
    epochs = round(TASKS[task].recipe.epochs * POINTS / len(rows))
    trained = fit(task, known.points, rows.repeat(AGAIN, 1), seeds, epochs)
    return accuracy([models[-1] for models in trained], known.test)


def clean(task: str, seed: int) -> Case:
    return _case(task, sets(task).points, sets(task).queries, seed, _models(task, seed, flips=False))


def _flipped(task: str, seed: int) -> tuple[Case, Tensor]:
    known, wrong = _flipped_sets(task, seed)
    return _case(task, known.points, known.queries, seed, _models(task, seed, flips=True)), wrong


def _case(task: str, points: Labelled, queries: Labelled, seed: int, models: list[nn.Module]) -> Case:
    return Case(task, TASKS[task].recipe, models, points, queries, seed)


@cache
def _models(task: str, seed: int, *, flips: bool) -> list[nn.Module]:
    points = _flipped_sets(task, seed)[0].points if flips else sets(task).points
    return checkpoints(task, points, seed)


@cache
def _flipped_sets(task: str, seed: int) -> tuple[Sets, Tensor]:
    return with_flips(sets(task), seed)
