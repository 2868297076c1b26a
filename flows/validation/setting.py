"""What a validation is about: one workload and recipe, the whole train set, and the queries in two halves.

Points that the ledger has removed are in: the estimator is judged, not a cycle. The holdout set is not read. Where
models are judged that were pruned by influence, influence comes from one half of the queries and the verdict from the
other, so that no query is both.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from flows.asking import has_classes
from flows.config import Config
from flows.dataset import digest
from flows.ranks.points import Points
from flows.recipe import steps_for
from flows.workload import Workload, load_workload
from storage.files import JSON, sha256_file, sha256_json

SPLIT_SEED = 0


@dataclass(frozen=True)
class Setting:
    """The two sets, read once in each process.

    Attributes:
        train: The whole train set.
        queries: All queries.
    """

    config: Config
    workload: Workload
    train: Points
    queries: Points

    @property
    def steps(self) -> int:
        """Optimizer steps of a model trained on everything."""
        return steps_for(self.config.training, len(self.train))

    @property
    def halves(self) -> tuple[Tensor, Tensor]:
        """Places of the queries that influence is measured on, and of those that judge."""
        shuffled = torch.randperm(len(self.queries), generator=torch.Generator().manual_seed(SPLIT_SEED))
        half = len(shuffled) // 2
        return shuffled[:half].sort().values, shuffled[half:].sort().values

    @property
    def wrong(self) -> Tensor | None:
        """Whether each point's given label differs from the true one, `[n]`; None where the truth is not known."""
        truth = getattr(self.workload, "truth", None)
        if truth is None or not has_classes(self.workload):
            return None
        labels: Mapping[object, int] = truth()
        return torch.tensor([labels[point] for point in self.train.ids]) != self.train.labels

    @property
    def inputs(self) -> dict[str, JSON]:
        """Everything that a retrained model depends on but its own seed, steps and points."""
        settings = self.config.model_dump(mode="json", by_alias=True)
        training = settings["training"]
        for key in ("ranks", "zero_stage", "checkpoints", "epochs", "seed"):  # not of plain training, or in its job
            del training[key]
        return {
            "workload": settings["workload"],
            "training": training,
            "train": digest(self.train.manifest),
            "query": digest(self.queries.manifest),
            "code": code_digest(self.workload),
        }


def code_digest(workload: Workload) -> str:
    """Of the files that the workload's class is made of, and of the versions."""
    sources = [sha256_file(Path(inspect.getfile(kind))) for kind in type(workload).__mro__[:-1]]
    return sha256_json([sources, version("tamis"), torch.__version__])


def read_setting(config: Config) -> Setting:
    """Load the workload and read its train and query sets."""
    workload = load_workload(config)
    return Setting(
        config=config,
        workload=workload,
        train=Points("train", workload.points(), workload),
        queries=Points("query", workload.queries(), workload),
    )
