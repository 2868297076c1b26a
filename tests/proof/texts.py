"""`make proof-texts`: flipped labels of real texts, and when fewer parameters suffice; docs/texts.md.

A cell is a file in docs/texts/, kept as long as the way it is measured is the same; the page says how many there are.
Cells are measured one after the other: give --kinds, --sets and --seeds to share them out. A turn of retrainings needs
the signals of its seed, which are measured first.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from storage.files import atomic_write_text
from tests.proof.flips import digest
from tests.proof.run import ROOT
from tests.proof.text_blocks import SIZES, Compared, Size, Way, measure
from tests.proof.text_cells import Removal, Signals, measure_removal, measure_signals
from tests.proof.text_models import CACHE, SETS, Outcome
from tests.proof.text_page import Cells, page

METHOD = (
    *("influence/stacking.py", "influence/suspicion.py", "deploy/text/tamis.toml", "deploy/newsgroups/tamis.toml"),
    *(f"tests/proof/{part}.py" for part in ("text_models", "text_cells", "text_blocks")),
)
SEEDS, TURNS = 5, 2
FEW = 300  # points of a trial
KINDS = ("signals", "removal", *SIZES)


@dataclass(frozen=True)
class Folder:
    """Where cells are kept.

    Attributes:
        path: Of the folder.
        few: Points of each cell of a trial; None in earnest.
    """

    path: Path
    few: int | None = None

    def signals(self, name: str, seed: int) -> Signals:
        """What signals find; measured where it is not there."""
        raw = self._kept(f"signals-{name}-{seed}", lambda: measure_signals(name, seed, self.few, self.few))
        pairs = {key: tuple(pair) for key, pair in raw["found"].items()}
        return Signals(**(raw | {"found": pairs, "texts": tuple(raw["texts"])}))

    def removal(self, name: str, seed: int, turn: int) -> Removal:
        """One turn of retrainings."""
        signals = self.signals(name, seed)
        raw = self._kept(f"removal-{name}-{seed}-{turn}", lambda: measure_removal(signals, name, seed, turn))
        return Removal(_outcomes(raw), raw["seconds"])

    def compared(self, kind: str, seed: int) -> Compared:
        """Blocks, compared."""
        size = SIZES[kind]
        if self.few:
            size = Size(size.whole, self.few, self.few, self.few // 5, 1)
        raw = self._kept(f"{kind}-{seed}", lambda: measure(size, seed))
        ways = {name: Way(**one) for name, one in raw["ways"].items()}
        return Compared(**(raw | {"size": Size(**raw["size"]), "ways": ways, "outcomes": _outcomes(raw)}))

    def has(self, key: str) -> bool:
        """Whether a cell is there."""
        return (self.path / f"{key}.json").exists()

    def cells(self) -> Cells:
        """All that are there."""
        seeds, turns = range(SEEDS), range(TURNS)
        signals = {
            name: {seed: self.signals(name, seed) for seed in seeds if self.has(f"signals-{name}-{seed}")}
            for name in SETS
        }
        removals = {
            name: {
                seed: [self.removal(name, seed, turn) for turn in turns if self.has(f"removal-{name}-{seed}-{turn}")]
                for seed in found
            }
            for name, found in signals.items()
        }
        compared = {kind: [self.compared(kind, seed) for seed in seeds if self.has(f"{kind}-{seed}")] for kind in SIZES}
        return Cells(signals, removals, compared, SEEDS, TURNS)

    def _kept(self, key: str, made: Callable[[], Any]) -> dict[str, Any]:
        path = self.path / f"{key}.json"
        if not path.exists():
            cell = asdict(made())
            atomic_write_text(path, json.dumps(cell) + "\n")
            print(f"{key}: {_spent(cell) / 60:.1f} minutes of CPU", flush=True)
        raw: dict[str, Any] = json.loads(path.read_text())
        return raw


def _outcomes(raw: dict[str, Any]) -> dict[str, Outcome]:
    return {name: Outcome(**one) for name, one in raw["outcomes"].items()}


def _spent(cell: dict[str, Any]) -> float:
    seconds = cell["seconds"]
    return float(seconds["all"] if isinstance(seconds, dict) else seconds)


def main() -> None:
    """Measure what is missing and write the tables of all that the folder holds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--seeds", nargs="+", type=int, choices=range(SEEDS), default=list(range(SEEDS)))
    parser.add_argument("--turns", nargs="+", type=int, choices=range(TURNS), default=list(range(TURNS)))
    parser.add_argument("--try", action="store_true", dest="trial", help="a few points, to see that it works")
    given = parser.parse_args()
    torch.set_num_threads(1)
    folder = Folder(CACHE / "try", FEW) if given.trial else Folder(ROOT / "docs" / "texts" / digest(METHOD))
    folder.path.mkdir(parents=True, exist_ok=True)
    for seed in given.seeds:
        for name in given.sets:
            if "signals" in given.kinds:
                folder.signals(name, seed)
            if "removal" in given.kinds:
                for turn in given.turns:
                    folder.removal(name, seed, turn)
        for kind in SIZES:
            if kind in given.kinds:
                folder.compared(kind, seed)
    text = page(folder.cells())
    if not given.trial:
        atomic_write_text(ROOT / "docs" / "texts.md", text)
    print(text)


if __name__ == "__main__":
    main()
