"""One cell of the proof: a whole cycle on one setting and seed, and what other signals would have done in its place.

The cycle is the shipped one (deploy/*/tamis.toml without Prefect), read through `tamis run --json`. Beside its
arms, models are trained by the same recipe after removing what a baseline signal ranks highest, as many points as the
proposal holds; what each policy alone proposes; and what is truly wrong.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flows.config import Config, load
from flows.ranks.plain import train_plainly
from flows.ranks.points import Points
from flows.recipe import steps_for
from flows.workload import Workload, load_workload
from influence.validation import average_precision
from storage import score_store
from tests.proof.settings import Setting, write_toml

POLICIES = ("harmful", "mislabeled")
SIGNALS = {
    "loss": "loss",
    "EL2N": "signal_el2n",
    "out-of-fold loss": "signal_out_of_fold_loss",
    "kNN": "signal_knn",
    "conformity": "signal_conformity",
}


@dataclass(frozen=True)
class Removal:
    """A set of points removed, and the model trained without them.

    Attributes:
        precision: Share of the removed that are truly wrong; None if nothing was removed.
        recall: Share of the truly wrong that were removed; None if nothing is wrong.
        accuracy: On the holdout set, mean over the trainings.
        loss: The same, in nats.
        average_precision: Of the ranking that it is cut from, if it is one.
    """

    size: int
    precision: float | None
    recall: float | None
    accuracy: float
    loss: float
    average_precision: float | None = None


@dataclass(frozen=True)
class Cell:
    """What was measured in one setting (its key) with one seed.

    Attributes:
        measured: The day and the revision.
    """

    setting: str
    seed: int
    state: str
    reason: str
    hash: str
    removals: dict[str, Removal]
    measured: str = ""


def measure(setting: Setting, seed: int, folder: Path) -> Cell:
    """Run the cycle of a cell and its comparisons in a folder.

    Args:
        setting: What is planted.
        seed: Of the split, the planted errors and the training.
        folder: Where the workspace goes.
    """
    config, summary = cycle(setting, seed, folder)
    removals = arms_of(summary) | Comparison(config, setting.trainings).removals(summary["proposed"])
    return Cell(setting.key, seed, summary["state"], summary["reason"], summary["proposal"], removals)


def cycle(setting: Setting, seed: int, folder: Path) -> tuple[Config, dict[str, Any]]:
    """Run a cycle in a folder: its configuration and what `tamis run --json` says."""
    toml = write_toml(setting, seed, folder)
    command = [sys.executable, "-m", "flows", "run", str(toml), "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{setting.key}, seed {seed}: tamis run ended with {done.returncode}: {done.stderr[-2000:]}")
    return load(toml), json.loads(done.stdout)


def arms_of(summary: dict[str, Any]) -> dict[str, Removal]:
    """The arms of the cycle; where nothing was proposed, challenger and control are the baseline."""
    known, arms = summary["known_errors"], summary["arms"]
    rates = {"challenger": (known["precision"], known["recall"])}
    return {
        arm: Removal(
            0 if arm == "baseline" else summary["proposed"],
            *rates.get(arm, (None, None)),
            arms.get(arm, arms["baseline"])["accuracy"]["mean"],
            arms.get(arm, arms["baseline"])["loss"]["mean"],
        )
        for arm in ("baseline", "challenger", "control")
    }


class Comparison:
    """What other signals would have removed, and how the models trained without that do."""

    def __init__(self, config: Config, trainings: int) -> None:
        first = config.training.seed
        self._config, self._seeds = config, range(first, first + trainings)
        self._workload: Workload = load_workload(config)
        self._points = Points("train", self._workload.points(), self._workload)
        self._holdout = Points("holdout", self._workload.holdout(), self._workload)
        self._folder = config.workspace / "cycles" / "000001"
        self._scores = score_store.read(self._folder / "scores")
        self._wrong = self._planted()
        self._trained: dict[bytes, tuple[float, float]] = {}
        self._q = {"harmful": config.pruning.harmful_q, "mislabeled": config.pruning.mislabeled_q}

    def _planted(self) -> Tensor:
        """What is truly wrong, in the order of the manifest."""
        truth = self._workload.truth()  # type: ignore[attr-defined]
        return torch.tensor([truth[point] for point in self._points.ids]) != self._points.labels

    def removals(self, size: int) -> dict[str, Removal]:
        """Baseline signals at the proposal's size, each policy alone, the policies on shuffled signals, the truth."""
        signals = {name: self._column(column) for name, column in SIGNALS.items()}
        signals["conformity"] = -signals["conformity"]  # the only one that is small where a label is suspicious
        found = {name: self._top(signal, size) for name, signal in signals.items()}
        ranked: dict[str, float] = {}
        if bool(self._wrong.any()):
            ranked = {name: average_precision(signal, self._wrong) for name, signal in signals.items()}
        for policy in POLICIES:
            found[f"{policy} alone"] = self._column(f"{policy}_q") <= self._q[policy]
        found["influence shuffled"] = self._shuffled("harmful", size)
        found["suspicion shuffled"] = self._shuffled("mislabeled", size)
        found["truth"] = self._wrong
        return {name: self._removal(gone, ranked.get(name)) for name, gone in found.items()}

    def _column(self, name: str) -> Tensor:
        return torch.from_numpy(self._scores[name].to_numpy().copy()).double()

    def _shuffled(self, policy: str, size: int) -> Tensor:
        """What both policies propose when, for one of them, every point carries another point's signal.

        Both rules treat points alike, so that q-values of shuffled signals are the shuffled q-values.
        """
        other = torch.randperm(len(self._points), generator=torch.Generator().manual_seed(self._config.training.seed))
        taken = {name: self._column(f"{name}_q") <= self._q[name] for name in POLICIES}
        taken[policy] = taken[policy][other]
        gone = torch.logical_or(*taken.values())
        return gone & (gone.cumsum(0) <= size)

    def _top(self, values: Tensor, size: int) -> Tensor:
        gone = torch.zeros(len(self._points), dtype=torch.bool)
        gone[values.argsort(descending=True, stable=True)[:size]] = True
        return gone

    def _removal(self, gone: Tensor, ranked: float | None) -> Removal:
        hit = int((gone & self._wrong).sum())
        size, wrong = int(gone.sum()), int(self._wrong.sum())
        same = gone.numpy().tobytes()
        if same not in self._trained:
            accuracy, loss = torch.stack([self._outcome(gone, seed) for seed in self._seeds]).mean(0).tolist()
            self._trained[same] = accuracy, loss
        trained = self._trained[same]
        return Removal(size, hit / size if size else None, hit / wrong if wrong else None, *trained, ranked)

    def _steps(self, gone: Tensor) -> int:
        """As many whatever is removed."""
        return steps_for(self._config.training, len(self._points))

    def _outcome(self, gone: Tensor, seed: int) -> Tensor:
        """Accuracy and loss on the holdout set of a model trained without some points: `[2]`."""
        steps = self._steps(gone)
        batch = self._holdout.take(range(len(self._holdout)))
        outcomes: list[Tensor] = []

        def judge(model: nn.Module) -> None:
            correct = self._workload.logits(model, batch).argmax(1) == self._workload.labels(batch)
            outcomes.append(torch.stack([correct.double().mean(), self._workload.loss(model, batch).double().mean()]))

        places = (~gone).nonzero()[:, 0]
        train_plainly(self._workload, self._points, self._config.training, places, seed, steps, {steps}, judge)
        return outcomes[0]


def to_json(cell: Cell) -> str:
    """A cell as JSON."""
    return json.dumps(asdict(cell), indent=1) + "\n"


def from_json(text: str) -> Cell:
    """A cell from JSON."""
    raw = json.loads(text)
    return Cell(**(raw | {"removals": {name: Removal(**value) for name, value in raw["removals"].items()}}))
