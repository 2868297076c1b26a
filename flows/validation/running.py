"""`tamis validate`: the studies of one command, their file and figures, and their MLflow runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from flows.asking import has_classes
from flows.check import require
from flows.config import load
from flows.dataset import digest
from flows.errors import BadInput
from flows.estimators import named
from flows.opening import workspace
from flows.progress import progress_shown
from flows.validation import exact, fragility, lds, loo, memorization, mislabeled, pruning
from flows.validation.bench import Bench, Extent
from flows.validation.pool import Pool
from flows.validation.publication import publish
from flows.validation.results import Study, Validation
from flows.validation.setting import Setting, read_setting
from storage import score_store
from storage.files import read_json

STUDIES: Mapping[str, Callable[[Bench], Study]] = {
    "lds": lds.study,
    "loo": loo.study,
    "exact-loo": exact.study,
    "mislabeled": mislabeled.study,
    "pruning": pruning.study,
    "memorization": memorization.study,
}

WITHOUT_CLASSES = ("lds", "loo")
"""What is asked of losses alone."""

REQUIREMENTS: Mapping[str, Callable[[Setting, Extent], object]] = {
    "exact-loo": lambda setting, _: exact.convex_model(setting),
    "mislabeled": lambda setting, _: mislabeled.wrong_labels(setting),
    "memorization": memorization.oracle_subsets,
}
"""What raises, before anything is trained, where a study cannot be done."""


def validate_file(file: Path, studies: Sequence[str], extent: Extent, *, fragile: bool = False) -> Validation:
    """Run studies on the workload, recipe and estimator of a tamis.toml.

    Args:
        file: The tamis.toml.
        studies: Names from `STUDIES`; none for all but `exact-loo`, and `mislabeled` where the truth is known.
        extent: How much is retrained.
        fragile: Ask whether the estimator is fragile, too, or alone where no study is named; beside `lds`, also by
            that truth.

    Raises:
        BadInput: An unknown study, or one that the workload does not allow; nothing was written.
        StageFailed: A process was killed; the same command continues.
    """
    if unknown := [name for name in studies if name not in STUDIES]:
        raise BadInput(f"--study {unknown[0]}: give one of {', '.join(STUDIES)}")
    config = load(file)
    require(config)
    setting = read_setting(config)
    wanted = tuple(dict.fromkeys(studies)) or (() if fragile else _usual(setting))
    if not has_classes(setting.workload) and (classed := [name for name in wanted if name not in WITHOUT_CLASSES]):
        raise BadInput(f"--study {classed[0]}: it needs classes; without them give {', '.join(WITHOUT_CLASSES)}")
    for name in wanted:
        if name in REQUIREMENTS:
            REQUIREMENTS[name](setting, extent)
    with workspace(config), progress_shown() as show:
        folder = config.workspace / "validation"
        with Pool(setting, folder / "models", show) as pool:
            bench = Bench(setting, extent, pool, show, _suspicion(setting))
            found = tuple(STUDIES[name](bench) for name in wanted)
            moved = fragility.measure(bench, truth="lds" in wanted) if fragile else None
        validation = Validation(
            dataset=config.name,
            estimator=f"{named(config)}, summed over {len(config.training.checkpoints)} checkpoints",
            points=len(setting.train),
            queries=len(setting.queries),
            folder=folder,
            studies=found if moved is None else (*found, fragility.study(moved)),
        )
        publish(validation, setting, moved)
    return validation


def _usual(setting: Setting) -> tuple[str, ...]:
    if not has_classes(setting.workload):
        return WITHOUT_CLASSES
    known = setting.wrong is not None and bool(setting.wrong.any())
    return tuple(name for name in STUDIES if name != "exact-loo" and (known or name != "mislabeled"))


def _suspicion(setting: Setting) -> Tensor | None:
    """Suspicion of each point, from the newest cycle of the workspace that scored this very train set."""
    if not has_classes(setting.workload):
        return None
    for folder in sorted(setting.config.workspace.glob("cycles/*"), reverse=True):
        scored = score_store.load(folder / "scores")
        if scored and read_json(folder / "cycle.json")["digests"]["train"] == digest(setting.train.manifest):
            table = score_store.read(folder / "scores", ["point_id", "suspicion"])
            found = dict(zip(table["point_id"].to_pylist(), table["suspicion"].to_pylist()))
            return torch.tensor([found[point] for point in setting.train.ids], dtype=torch.float64)
    return None
