"""`make proof-lds`: how well influence predicts retraining, and docs/lds.md. Cells that are there are kept.

Truth: the query losses of models trained on random halves of the points. Scores: five models trained on all points,
alone and in each of the ten triples. Damping: the recipe's, or chosen by halves that are not among the truth's.
kronfluence scores the same models in its own interpreter.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import subprocess
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations, product
from pathlib import Path
from statistics import mean, stdev

import torch
from torch import Tensor

from influence import over_checkpoints, over_models
from influence.validation import lds, noise_ceiling
from tests.proof import lds_convex
from tests.proof.days import days
from tests.proof.flips import digest
from tests.proof.intervals import T95
from tests.proof.lds_estimators import ESTIMATORS, scores
from tests.proof.lds_models import Given
from tests.proof.lds_truth import (
    DIGITS,
    FASHION,
    POINTS,
    QUERIES,
    RETRAINS,
    SETTINGS,
    SUBSETS,
    Setting,
    base_models,
    data,
    own_subsets,
    own_truth,
    subsets,
    truth,
)
from tests.proof.run import ROOT

SEEDS = 5
METHOD = tuple(f"tests/proof/lds_{part}.py" for part in ("models", "truth", "estimators", "convex", "peer"))
TARGETS = {  # of one model and of three
    (FASHION, "EK-FAC, 4 checkpoints"): (0.62, 0.67),
    (FASHION, "dual GGN, 4 checkpoints"): (0.64, 0.72),
    (FASHION, "EK-FAC, damping chosen, 4 checkpoints"): (0.62, 0.67),
    (FASHION, "dual GGN, damping chosen, 4 checkpoints"): (0.64, 0.72),
    (DIGITS, "dual GGN, last checkpoint"): (0.76, 0.81),
    (DIGITS, "dual GGN, 4 checkpoints"): (0.76, 0.81),
    (DIGITS, "dual GGN, damping chosen, last checkpoint"): (0.76, 0.81),
    (DIGITS, "dual GGN, damping chosen, 4 checkpoints"): (0.76, 0.81),
}
PROTOCOL = """\
Rank correlation, per query, of predicted and real loss over the halves, mean over queries. One model: seeds 0 to 4 of
initial weights and order of the points. Three: mean over the 10 triples, each query's column brought to norm 1 before
averaging. Checkpoints after 25, 50, 75 and 100 % of the steps, scores summed.

SGD, momentum .9, batches of 50, learning rate falling linearly to 0, the same epochs for halves. Recipes were compared
by loss and accuracy on held-out data (5,000 images, 697 digits), mean over models on all points and on halves, seeds 0
to 2, among learning rates .03 to .2, weight decay .0001 to .01 and 10 to 120 epochs; accuracies within .001 count as
equal, and loss decides. Not blind: those of highest accuracy were judged first, then those with less weight decay
(on digits also the one of least loss), then the one of least loss on Fashion-MNIST. All are shown, each beside the
targets of its network.

Damping follows from the recipe: weight decay for EK-FAC; 1/T + weight decay for the dual, T = sum of the learning
rates / (1 - momentum) of training on a half. Or it is chosen, for each model anew, among 3, 1, .3, .1 and .03 times
that, by the LDS on 32 other halves of one model each, which a user can train, too; the 100 that judge are not looked
at. The dual leaves out the smallest roots that hold .001 of the trace.
kronfluence scores the last checkpoint by its own defaults (labels of its Fisher sampled)."""
Rows = list[tuple[str, list[Tensor]]]  # of each row its name and the scores [n, m] by every model


def main() -> None:
    """Measure what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=Path, default=ROOT / "build" / "lds" / digest(METHOD))
    parser.add_argument("--peers", type=Path, default=ROOT / "build" / "bench" / "peers" / "bin" / "python")
    arguments = parser.parse_args()
    folder: Path = arguments.cells
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for task, seed in product(SETTINGS, range(SEEDS)):
        _hand_over(task, seed, folder)
    subprocess.run([arguments.peers, "-m", "tests.proof.lds_peer", folder], cwd=ROOT, check=True)
    lines = [*_head(folder), *_convex([lds_convex.cell(seed, folder) for seed in range(SEEDS)])]
    for task, setting in SETTINGS.items():
        lines += _section(task, setting, folder)
    (ROOT / "docs" / "lds.md").write_text("\n".join(lines))
    print("\n".join(lines))


def _section(task: str, setting: Setting, folder: Path) -> list[str]:
    losses, halves, recipe = truth(task, folder), subsets(), setting.recipe

    def judge(found: Tensor) -> float:
        return float(lds(found, halves, losses.mean(1)).mean())

    lines = [
        f"## {setting.network}: {setting.chosen}",
        "",
        f"Learning rate {recipe.rate:g}, weight decay {recipe.weight_decay:g}, {recipe.epochs} epochs; damping of "
        f"EK-FAC {recipe.weight_decay:g}, of the dual {1 / recipe.horizon(POINTS // 2) + recipe.weight_decay:.4f}. "
        f"Noise ceiling {float(noise_ceiling(losses).mean()):.3f}.",
        "",
        "| estimator | one model | three models | target |",
        "|---|---|---|---|",
    ]
    for name, models in _ours(task, folder) + _theirs(task, folder):
        one = interval([judge(found) for found in models])
        three = mean(judge(over_models(triple)) for triple in combinations(models, 3))
        target = TARGETS.get((setting.network, name))
        goal = "" if target is None else f"{target[0]:.2f} / {target[1]:.2f}"
        lines.append(f"| {name} | {one} | {three:.3f} | {goal} |")
    return [*lines, ""]


def _ours(task: str, folder: Path) -> Rows:
    def score(seed: int) -> dict[str, Tensor]:
        return scores(task, seed)

    models = [_kept(folder / f"{task}-scores-{seed}.pt", score, seed) for seed in range(SEEDS)]
    halves, losses = own_subsets(), own_truth(task, folder)[:, 0]

    def chosen(dampings: Sequence[Tensor]) -> Tensor:
        return max(dampings, key=lambda found: float(lds(found, halves, losses).mean()))

    ways: list[tuple[str, Callable[[Tensor], Tensor]]] = [
        ("last checkpoint", lambda found: found[-1]),
        ("4 checkpoints", lambda found: over_checkpoints(list(found))),
    ]
    rows: Rows = []
    for name, estimator in ESTIMATORS.items():
        rows += [(f"{name}, {way}", [combine(model[name][0]) for model in models]) for way, combine in ways]
        if estimator.others:
            rows += [
                (f"{name}, damping chosen, {way}", [chosen([combine(one) for one in model[name]]) for model in models])
                for way, combine in ways
            ]
    return rows


def _theirs(task: str, folder: Path) -> Rows:
    models: list[dict[str, Tensor]] = [torch.load(folder / f"{task}-peer-{seed}.pt") for seed in range(SEEDS)]
    return [(f"{name}, last checkpoint", [model[name] for model in models]) for name in models[0]]


def _hand_over(task: str, seed: int, folder: Path) -> None:
    path, (points, queries) = folder / f"{task}-model-{seed}.pt", data(task)
    if not path.exists():
        given = Given(
            layers=base_models(task, seed)[-1],
            points=(points.inputs, points.labels),
            queries=(queries.inputs, queries.labels),
            weight_decay=SETTINGS[task].recipe.weight_decay,
            seed=seed,
        )
        torch.save(given, path)


def _kept(path: Path, make: Callable[[int], dict[str, Tensor]], seed: int) -> dict[str, Tensor]:
    if not path.exists():
        torch.save(make(seed), path)
        print(path.name, flush=True)
    found: dict[str, Tensor] = torch.load(path)
    return found


def _head(folder: Path) -> list[str]:
    return [
        "# Proof against retraining",
        "",
        f"Measured {days(path for path in folder.iterdir() if path.is_file())}, {platform.machine()}, one of "
        f"{os.cpu_count()} cores, torch {torch.__version__}; `make proof-lds`. "
        f"± is half of the 95 % t interval over {SEEDS} seeds.",
        "",
    ]


def _convex(cells: Sequence[dict[str, lds_convex.Exact]]) -> list[str]:
    lines = [
        "## Exact leave-one-out",
        "",
        f"Digits, softmax regression, weight decay {lds_convex.RIDGE:g}, {lds_convex.POINTS:,} train points, "
        f"{lds_convex.QUERIES} queries; {lds_convex.LEFT_OUT} random points, each left out of the exact minimum. "
        "Seeds are of the split. Pearson over all pairs of them; target .999 for the first two. Seconds are of the "
        "processor, to fit and to score all pairs.",
        "",
        "| estimator | Pearson | seconds |",
        "|---|---|---|",
    ]
    for name in cells[0]:
        found = [cell[name] for cell in cells]
        pearson = interval([one.pearson for one in found], ".5f")
        lines.append(f"| {name} | {pearson} | {mean(one.seconds for one in found):.2f} |")
    return [*lines, "", *_protocol()]


def _protocol() -> list[str]:
    return [
        "## Linear datamodeling score",
        "",
        f"{POINTS:,} train points, {QUERIES} queries, {SUBSETS} random halves x {RETRAINS} models each; split and "
        "halves by seed 0.",
        *PROTOCOL.splitlines(),
        "",
    ]


def interval(values: Iterable[float], form: str = ".3f") -> str:
    """Mean ± half of the 95 % t interval."""
    known = list(values)
    half = T95[len(known)] * stdev(known) / math.sqrt(len(known))
    return f"{mean(known):{form}} ± {half:{form}}"


if __name__ == "__main__":
    main()
