"""`make proof-balanced`: how much may be left out, and by which policy; docs/redundancy.md.

Clean data and the recipe of use_cells.py; EK-FAC over four checkpoints, `balanced` in shards of the shipped size. A
cell, one task with one seed, is a file in docs/redundancy/; one that is there is kept.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from flows.workloads.digits import Digits
from flows.workloads.fashion_mnist import FashionMnist
from flows.workloads.images import ImageWorkload
from influence import EKFAC, Damping, Influence, cheap_signals, linear_blocks
from influence.balance import balance
from influence.discovery import Trusted
from storage.files import atomic_write_text
from tests.proof.intervals import interval
from tests.proof.lds_estimators import TASK
from tests.proof.lds_models import Layers, accuracies, losses, module, train
from tests.proof.lds_truth import Labelled
from tests.proof.run import ROOT
from tests.proof.use_cells import RECIPE, RETRAINS, Sets, Signals, least_redundant, retrained, task_of

SHARES, WAYS = ("20%", "40%", "60%"), ("balanced", "redundant", "loss", "EL2N", "random")
CHUNK, SEEDS = 256, 5
TASKS: Mapping[str, Callable[[int], ImageWorkload]] = {
    "Fashion-MNIST, 2,000 points": lambda seed: FashionMnist("mlp", 2000, 500, 8000, "flips", 0.0, seed),
    "Fashion-MNIST, 1,000 points": lambda seed: FashionMnist("mlp", 1000, 300, 8000, "flips", 0.0, seed),
    "Digits, 1,000 points": lambda seed: Digits("flips", 0.0, seed),
}
Outcome = Sequence[float]  # accuracy and loss in nats on clean test points, means over RETRAINS
Cell = Mapping[str, Mapping[str, Outcome]]  # by share and way; "0%" holds "nothing"


def main() -> None:
    """Measure what is missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=Path, default=ROOT / "docs" / "redundancy")
    folder: Path = parser.parse_args().cells
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    text = page({task: [kept(task, seed, folder) for seed in range(SEEDS)] for task in TASKS})
    (ROOT / "docs" / "redundancy.md").write_text(text)
    print(text)


def kept(task: str, seed: int, folder: Path) -> Cell:
    """The measurement of a task and seed; not made again if the folder holds it."""
    path = folder / f"{task.lower().replace(', ', '-').replace(',', '').replace(' ', '-')}-{seed}.json"
    if not path.exists():
        atomic_write_text(path, json.dumps(measure(task_of(TASKS[task](seed)), seed), indent=1) + "\n")
        print(f"{task}, seed {seed}", flush=True)
    cell: Cell = json.loads(path.read_text())
    return cell


def measure(sets: Sets, seed: int) -> Cell:
    """Accuracy and loss without what each way leaves out first."""
    first, n = orders(sets, seed), len(sets.points.labels)
    found = {"0%": {"nothing": _outcomes(sets, [torch.empty(0, dtype=torch.int64)], seed)[0]}}
    for share in SHARES:
        gone = [first[way].argsort(stable=True)[: n * int(share[:-1]) // 100] for way in WAYS]
        found[share] = dict(zip(WAYS, _outcomes(sets, gone, seed), strict=True))
    return found


def orders(sets: Sets, seed: int) -> dict[str, Tensor]:
    """What each way leaves out first, the smallest, [n]; policies by their score columns."""
    points = sets.points
    n, everyone = len(points.labels), torch.ones(CHUNK, dtype=torch.bool)
    checkpoints = train(RECIPE, points.inputs, points.labels, torch.arange(n)[None], [seed])
    shards = [Labelled(*pair) for pair in zip(points.inputs.split(CHUNK), points.labels.split(CHUNK), strict=True)]
    products = [
        torch.stack(parts).sum(0) for parts in zip(*(_products(sets, one, shards) for one in checkpoints), strict=True)
    ]
    with torch.no_grad():
        last = cheap_signals(module(checkpoints[-1], 0)(points.inputs), points.labels)
    own = torch.cat([one.diagonal() for one in products])
    signals = Signals(own[:, None], own, last.loss, last.el2n, Trusted(own, own), own)  # of which `own` is read
    parts = [balance(one, [shard.labels], everyone[: len(one)]) for one, shard in zip(products, shards, strict=True)]
    drawn = torch.rand(n, generator=torch.Generator().manual_seed(seed))
    return {
        "balanced": torch.cat(parts),
        "redundant": least_redundant(sets, signals),
        "loss": last.loss,
        "EL2N": last.el2n,
        "random": drawn,
    }


def _products(sets: Sets, layers: Layers, shards: Sequence[Labelled]) -> list[Tensor]:
    """g' H^-1 g of any two points of a shard by one checkpoint, [b, b] each."""
    points, model = sets.points, module(layers, 0)
    blocks = linear_blocks(model)
    with Influence(model, TASK, EKFAC(blocks), blocks) as influence:
        influence.fit([(one.inputs, one.labels) for one in shards], Damping("absolute", RECIPE.weight_decay))
        asked = ([(one.inputs, one.labels)] for one in shards)
        return [influence.pairs(one, one, own=False).influence * len(points.labels) for one in asked]


def _outcomes(sets: Sets, gone: Sequence[Tensor], seed: int) -> list[Outcome]:
    trained, test = retrained(sets, gone, seed), sets.test
    correct = accuracies(trained, test.inputs, test.labels)
    loss = losses(trained, test.inputs, test.labels).mean(1)
    found: list[Outcome] = torch.stack([correct, loss], 1).unflatten(0, (-1, RETRAINS)).mean(1).tolist()
    return found


def page(cells: Mapping[str, Sequence[Cell]]) -> str:
    """The Markdown page."""
    lines = [
        "# How much may be left out",
        "",
        f"`make proof-balanced`, {platform.machine()}, torch {torch.__version__}; {SEEDS} seeds of split and training, "
        "± half of the 95 % t interval over them.",
        "Clean data, an MLP 64-32-10 and the recipe of docs/uses.md; EK-FAC over four checkpoints. What each way "
        f"leaves out first is left out, {RETRAINS} models are trained without it, for as many steps as with all. "
        f"`balanced` is computed in shards of {CHUNK} points, as shipped.",
        "",
        "Accuracy on clean test points, in percent; *gain*: of `balanced` over that way, by seed; less loss is better.",
        "",
    ]
    return "\n".join([*lines, *(line for task, some in cells.items() for line in _table(task, some))])


def _table(task: str, cells: Sequence[Cell]) -> list[str]:
    whole = interval((100 * cell["0%"]["nothing"][0] for cell in cells), ".2f")
    lines = [f"## {task}", "", f"With all points {whole}.", ""]
    lines += ["| left out | by | accuracy | gain | loss (nats) | gain |", "|---|---|---|---|---|---|"]
    for share in SHARES:
        for way in WAYS:
            columns = []
            for part, scale, form in ((0, 100, ".2f"), (1, 1, ".3f")):
                columns.append(interval((scale * cell[share][way][part] for cell in cells), form))
                gains = (scale * (cell[share]["balanced"][part] - cell[share][way][part]) for cell in cells)
                columns.append("-" if way == "balanced" else interval(gains, f"+{form}"))
            lines.append(f"| {share} | {way} | {' | '.join(columns)} |")
    return [*lines, ""]


if __name__ == "__main__":
    main()
