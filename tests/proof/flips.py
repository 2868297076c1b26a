"""`make proof-flips`: every cell of the proof on flipped labels, and the tables in docs/flips.md.

Cells that are there are kept, as long as the method and the way it is measured are the same.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import multiprocessing
import os
import platform
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from functools import partial
from pathlib import Path
from statistics import mean, stdev

import torch

from tests.proof import flip_parts
from tests.proof.flip_cells import RECIPES, SETTINGS, Flips, Recipe, Setting, from_json, measure, to_json
from tests.proof.intervals import T95
from tests.proof.run import ROOT

METHOD = ("influence/stacking.py", "influence/suspicion.py", "tests/proof/flip_cells.py")
SIGNALS = ("loss", "mean loss", "EL2N", "out-of-fold", "kNN")
CLOSE = (0.005, 0.01)  # how far below the best single signal suspicion may stay, AUC and average precision


def main() -> None:
    """Measure what is missing and write the tables."""
    names = [recipe.name for recipe in RECIPES]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--recipes", nargs="*", choices=names, default=names)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--cells", type=Path, default=ROOT / "build" / "flips" / digest(METHOD))
    arguments = parser.parse_args()
    arguments.cells.mkdir(parents=True, exist_ok=True)
    settings = [setting for setting in SETTINGS if setting.recipe.name in arguments.recipes]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.processes, mp_context=spawn) as pool:
        jobs = [pool.submit(_cell, s, seed, arguments.cells) for seed in range(arguments.seeds) for s in settings]
        for job in jobs:
            job.result()
    cells = [from_json(path.read_text()) for path in sorted(arguments.cells.glob("*.json"))]
    text = page(cells, flip_parts.kept(flip_parts.CELLS))
    (ROOT / "docs" / "flips.md").write_text(text)
    print(text)


def digest(files: Sequence[str]) -> str:
    """Of the method: cells of another one are not mixed with its own."""
    return hashlib.sha256(b"".join((ROOT / name).read_bytes() for name in files)).hexdigest()[:12]


def _cell(setting: Setting, seed: int, folder: Path) -> None:
    path = folder / f"{RECIPES.index(setting.recipe)}-{setting.corruption}-{setting.rate}-{seed}.json"
    if path.exists():
        return
    torch.set_num_threads(1)
    cell = measure(setting, seed)
    path.write_text(to_json(cell))
    print(f"{cell.recipe}, {cell.noise}, seed {seed}: {cell.seconds:.0f} s of CPU", flush=True)


def page(cells: Sequence[Flips], parts: Sequence[flip_parts.Parts] = ()) -> str:
    """The Markdown page.

    Args:
        cells: Of every setting.
        parts: What pruning misses on the converged CNN.
    """
    lines = [
        "# Proof on flipped labels",
        "",
        f"`make proof-flips`, {date.today().isoformat()}, {platform.machine()}, torch {torch.__version__}, one thread "
        f"per cell, {sum(cell.seconds for cell in cells) / 60:.0f} minutes of CPU.",
        "Fashion-MNIST; mean ± half of the 95 % t interval over seeds (points, planted errors and training).",
        "`loss` and `EL2N` are of the last checkpoint of a model trained on all points, `mean loss` of its four; "
        "`out-of-fold` is the first round's log-probability of the given label; `kNN` counts 15 neighbours.",
        "Class-dependent errors give a point the label its class is most often taken for.",
        "Pruning removes as many points as suspicion itself estimates to be wrong; the accuracy is of 9,500 clean test "
        "images, mean over retrainings and the ends of their last five epochs, with the same steps for all.",
        "",
        *_verdicts(cells),
    ]
    for recipe in RECIPES:
        if ours := [cell for cell in cells if cell.recipe == recipe.name]:
            lines += _section(recipe, ours)
    return "\n".join([*lines, *flip_parts.section(parts)])


def _verdicts(cells: Sequence[Flips]) -> list[str]:
    """What was asked, and what came out, over the settings that were measured."""
    settings = _by_setting(cells)
    short = [name for name, ours in settings.items() if any(b < -a for a, b in zip(CLOSE, _lead(ours), strict=True))]
    uniform = {name: ours for name, ours in settings.items() if name[1].startswith("uniform")}
    off = {name: abs(mean(c.noise_rate - c.true_rate for c in ours)) for name, ours in uniform.items()}
    gains = {name: _share(ours) for name, ours in settings.items()}
    return [
        f"- Settings where suspicion is at least the best single signal, up to {CLOSE[0]} AUC and {CLOSE[1]} AP: "
        f"{len(settings) - len(short)} of {len(settings)}{_named(short)}.",
        f"- Uniform flips, estimated noise rate: at most {max(off.values()):.3f} from the truth (asked: .02).",
        f"- Share of the oracle's gain in accuracy: {min(gains.values()):.0%} to {max(gains.values()):.0%}, below the "
        f"60 % asked in {sum(g < 0.6 for g in gains.values())}{_named([n for n, g in gains.items() if g < 0.6])}.",
        "",
    ]


def _named(settings: Sequence[tuple[str, str]]) -> str:
    return f" (not: {'; '.join(f'{recipe}, {noise}' for recipe, noise in settings)})" if settings else ""


def _section(recipe: Recipe, cells: Sequence[Flips]) -> list[str]:
    settings = _by_setting(cells)
    ours = list(settings.values())
    decay = f"weight decay {recipe.weight_decay}" if recipe.weight_decay else "no weight decay"
    lines = [
        f"## {recipe.name}",
        "",
        f"{recipe.points:,} points, AdamW, {recipe.epochs} epochs, batch {recipe.batch_size}, learning rate "
        f"{recipe.learning_rate}, {decay}; {recipe.retrainings} retraining{'s' * (recipe.retrainings > 1)} per set; "
        f"loss of the full model on its given labels {mean(c.fitted for c in cells):.2f} nats.",
        "",
        "| AUC / AP | " + " | ".join(f"{noise} ({_seeds(found)})" for (_, noise), found in settings.items()) + " |",
        "|---" * (len(settings) + 1) + "|",
    ]
    rows: dict[str, Callable[[Sequence[Flips]], str]] = {name: partial(_pair, name=name) for name in SIGNALS}
    rows |= {
        "**suspicion**": lambda ours: f"**{_pair(ours, 'suspicion')}**",
        "lead over the best single": lambda ours: " / ".join(f"{lead:+.3f}" for lead in _lead(ours)),
        "noise rate": lambda ours: _interval([c.noise_rate for c in ours], ".3f"),
        "precision of the pruned": lambda ours: _interval([c.precision for c in ours], ".2f"),
        "accuracy, nothing removed": partial(_accuracy, arm="nothing"),
        "accuracy, pruned": partial(_accuracy, arm="suspicion"),
        "accuracy, the flipped removed (oracle)": partial(_accuracy, arm="the truth"),
        "share of the oracle's gain": lambda ours: f"{_share(ours):.0%}",
    }
    return [*lines, *(f"| {name} | " + " | ".join(map(row, ours)) + " |" for name, row in rows.items()), ""]


def _by_setting(cells: Sequence[Flips]) -> dict[tuple[str, str], list[Flips]]:
    found = {
        (s.recipe.name, s.noise): [c for c in cells if (c.recipe, c.noise) == (s.recipe.name, s.noise)]
        for s in SETTINGS
    }
    return {name: ours for name, ours in found.items() if ours}


def _lead(ours: Sequence[Flips]) -> tuple[float, float]:
    """Of suspicion over the signal that is best on average; AUC, AP."""
    auc, ap = (
        mean(c.found["suspicion"][k] for c in ours) - max(mean(c.found[name][k] for c in ours) for name in SIGNALS)
        for k in (0, 1)
    )
    return auc, ap


def _share(ours: Sequence[Flips]) -> float:
    """Of the oracle's gain in accuracy that pruning reaches: a ratio of means."""
    gain = {arm: mean(c.accuracy[arm] - c.accuracy["nothing"] for c in ours) for arm in ("suspicion", "the truth")}
    return gain["suspicion"] / gain["the truth"]


def _seeds(ours: Sequence[Flips]) -> str:
    return f"{len(ours)} seeds" if len(ours) > 1 else "1 seed"


def _accuracy(ours: Sequence[Flips], arm: str) -> str:
    return _interval([c.accuracy[arm] for c in ours], ".4f")


def _pair(ours: Sequence[Flips], name: str) -> str:
    return " / ".join(_interval([c.found[name][k] for c in ours], ".3f") for k in (0, 1))


def _interval(values: Sequence[float], form: str) -> str:
    if len(values) == 1:
        return f"{values[0]:{form}}"
    return f"{mean(values):{form}} ± {T95[len(values)] * stdev(values) / math.sqrt(len(values)):{form}}"


if __name__ == "__main__":
    main()
