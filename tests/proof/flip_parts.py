"""`make proof-flip-parts`: of what the gain is made that pruning misses where it misses most, the converged CNN.

Two things are wrong with what suspicion removes: flips stay, and clean points go. Each is put right alone and together
with the other (a 2 x 2 factorial design), and a part is its mean effect over both states of the other: the parts add up
to what is missing, and every retraining speaks for both. A cell, a rate with a seed, is a file in docs/flips/, measured
again where it was deleted. The section of docs/flips.md is written anew from those that are there.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor

from storage.files import atomic_write_text
from tests.proof.flip_cells import SETTINGS, Bench, Judged, first
from tests.proof.intervals import interval

CELLS = Path(__file__).parents[2] / "docs" / "flips"
PAGE = CELLS.with_suffix(".md")
TITLE = "## What pruning misses on the converged CNN"
SETTING = {s.rate: s for s in SETTINGS if s.recipe.name == "CNN, converged" and s.corruption == "flips"}
NOTHING, ESTIMATE, FOUND, EXTRA, TRUTH, SURE = "nothing", "estimate", "found", "extra", "truth", "sure"
RETRAININGS = 5  # the parts are small beside what one retraining differs from another
LIKELY = 0.8  # the posterior from which a flip counts as sure
ARMS = {
    NOTHING: "nothing",
    ESTIMATE: "as many as it estimates",
    SURE: f"those with a posterior above {LIKELY}",
    FOUND: "as many as it estimates, less the clean ones",
    EXTRA: "as many as it estimates, and the flips that stayed",
    TRUTH: "the flipped (oracle)",
}
Value = Callable[[Judged], float]


@dataclass(frozen=True)
class Parts:
    """What was measured at one rate with one seed, by arm.

    Attributes:
        sizes: Points removed.
        outcomes: Of each retraining, in the order of their seeds.
        measured: When, and what was done otherwise than here.
    """

    rate: float
    seed: int
    sizes: Mapping[str, int]
    outcomes: Mapping[str, Sequence[Judged]]
    measured: str

    def values(self, arm: str, value: Value) -> list[float]:
        """Of each retraining."""
        return [value(one) for one in self.outcomes[arm]]

    def missing(self, value: Value) -> list[tuple[float, float]]:
        """What the oracle has above the estimate: by flips that stay, by clean points that go; of each retraining."""
        columns = (self.values(arm, value) for arm in (ESTIMATE, FOUND, EXTRA, TRUTH))
        return [
            ((extra - estimate + truth - found) / 2, (found - estimate + truth - extra) / 2)
            for estimate, found, extra, truth in zip(*columns, strict=True)
        ]


def main() -> None:
    """Measure what is missing of the first so many seeds, and write the section anew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    torch.set_num_threads(1)
    for seed in range(parser.parse_args().seeds):
        for rate in SETTING:
            path = CELLS / f"{rate}-{seed}.json"
            if not path.exists():
                started = time.process_time()
                atomic_write_text(path, json.dumps(asdict(measure(rate, seed)), indent=1))
                print(f"{rate:.0%}, seed {seed}: {time.process_time() - started:.0f} s of CPU", flush=True)
    whole = PAGE.read_text().partition(TITLE)[0]
    atomic_write_text(PAGE, whole + "\n".join(section(kept(CELLS))))


def measure(rate: float, seed: int) -> Parts:
    """Retrain without each set of points."""
    setting = SETTING[rate]
    bench = Bench(replace(setting, recipe=replace(setting.recipe, retrainings=RETRAININGS)), seed)
    signals, noise_rate = bench.suspicion()
    removed = arms(signals["suspicion"], noise_rate, bench.wrong)
    sizes = {arm: int(gone.sum()) for arm, gone in removed.items()}
    outcomes = {arm: bench.without(gone) for arm, gone in removed.items()}
    return Parts(rate, seed, sizes, outcomes, date.today().isoformat())


def arms(score: Tensor, noise_rate: float, wrong: Tensor) -> dict[str, Tensor]:
    """The points that each arm removes, bool `[n]`, by suspicion's score, log-odds."""
    chosen = first(score, noise_rate)
    return {
        NOTHING: torch.zeros_like(wrong),
        ESTIMATE: chosen,
        SURE: score.sigmoid() > LIKELY,
        FOUND: chosen & wrong,
        EXTRA: chosen | wrong,
        TRUTH: wrong,
    }


def kept(folder: Path) -> list[Parts]:
    """The cells that a folder holds."""
    found = []
    for path in sorted(folder.glob("*.json")):
        raw = json.loads(path.read_text())
        outcomes = {arm: [Judged(**one) for one in ours] for arm, ours in raw["outcomes"].items()}
        found.append(Parts(**(raw | {"outcomes": outcomes})))
    return found


def section(cells: Sequence[Parts]) -> list[str]:
    """Lines of Markdown: every arm by rate, and the parts of what is missing."""
    if not cells:
        return []
    by_rate = [[cell for cell in cells if cell.rate == rate] for rate in sorted({cell.rate for cell in cells})]
    lines = [
        TITLE,
        "",
        "`make proof-flip-parts`: uniform flips. Points; accuracy; loss in nats; in brackets the share of the oracle's "
        "gain in either. Mean ± half of the 95 % t interval over the retrainings of all seeds. Measured "
        f"{'; '.join(sorted({cell.measured for cell in cells}))}.",
        "",
        "| removed | " + " | ".join(map(_title, by_rate)) + " |",
        "|---" * (len(by_rate) + 1) + "|",
    ]
    lines += [f"| {title} | " + " | ".join(_arm(ours, arm) for ours in by_rate) + " |" for arm, title in ARMS.items()]
    return [*lines, "", *map(_said, by_rate), ""]


def _title(cells: Sequence[Parts]) -> str:
    models = sum(len(cell.outcomes[TRUTH]) for cell in cells)
    seeds = f"{len(cells)} seed{'s' * (len(cells) > 1)}"
    return f"uniform, {cells[0].rate:.0%} ({seeds}, {models} retraining{'s' * (models > 1)})"


def _arm(cells: Sequence[Parts], arm: str) -> str:
    points = mean(cell.sizes[arm] for cell in cells)
    said = [
        f"{interval((v for cell in cells for v in cell.values(arm, value)), form)} ({_share(cells, arm, value):.0%})"
        for value, form in ((_accuracy, ".4f"), (_loss, ".3f"))
    ]
    return "; ".join([f"{points:.0f}", *said])


def _said(cells: Sequence[Parts]) -> str:
    stay = mean(cell.sizes[EXTRA] - cell.sizes[ESTIMATE] for cell in cells)
    gone = mean(cell.sizes[ESTIMATE] - cell.sizes[FOUND] for cell in cells)
    costs = []
    for part in (0, 1):
        points = interval((100 * one[part] for cell in cells for one in cell.missing(_accuracy)), ".2f")
        nats = interval((-one[part] for cell in cells for one in cell.missing(_loss)), ".3f")
        costs.append(f"{points} points of accuracy and {nats} nats")
    return (
        f"- {cells[0].rate:.0%}: the {stay:.0f} flips that stay cost {costs[0]}; the {gone:.0f} clean points that go "
        f"{costs[1]}."
    )


def _share(cells: Sequence[Parts], arm: str, value: Value) -> float:
    """Of the oracle's gain: a ratio of means."""
    nothing, ours, truth = (
        mean(v for cell in cells for v in cell.values(name, value)) for name in (NOTHING, arm, TRUTH)
    )
    return (ours - nothing) / (truth - nothing) + 0.0  # no -0%


def _accuracy(one: Judged) -> float:
    return one.accuracy


def _loss(one: Judged) -> float:
    return one.loss


if __name__ == "__main__":
    main()
