"""What `tamis validate --fragility` found, kept in the workspace, and the warning that a cycle shows for it.

A verdict holds for the settings it was found with: workload and its code, training recipe and estimator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from flows.config import Config
from flows.validation.setting import code_digest
from flows.workload import Workload
from influence.fragility import Spread
from storage.files import JSON, atomic_write_json, read_json, sha256_json

ELSEWHERE = {  # what changes no influence: how the work is shared out, and other signals
    "training": {"ranks", "zero_stage"},
    "scoring": {
        "ranks",
        "chunk",
        "factor_cache",
        "exact_head",
        "head_damping",
        "probe",
        "folds",
        "repeats",
        "neighbours",
    },
}


@dataclass(frozen=True)
class Verdict:
    """Whether the estimator is fragile on this model.

    Attributes:
        settings: Digest of what it holds for.
        bound: Of the median agreement, below which a judged variation is fragile.
        judged: The variations that it counts: damping within a factor of 3, checkpoints, seeds.
        agreement: By variation, rank correlation over the train points, per query, with the configured scores.
        lds: By variation, where the truth was trained and the change leaves it as it is.
        skipped: What was not varied, and why.
    """

    settings: str
    bound: float
    judged: tuple[str, ...]
    agreement: Mapping[str, Spread]
    lds: Mapping[str, Spread]
    skipped: tuple[str, ...]

    @property
    def worst(self) -> str:
        """The judged variation of least median agreement."""
        return min(self.judged, key=lambda name: self.agreement[name].median)

    @property
    def fragile(self) -> bool:
        """Whether a judged variation is fragile."""
        return self.agreement[self.worst].median < self.bound

    @property
    def sentence(self) -> str:
        """The verdict in one line."""
        return (
            f"{'fragile' if self.fragile else 'not fragile'}: with {self.worst}, the scores of a query keep a rank "
            f"correlation of {self.agreement[self.worst].median:.2f} with the configured ones (median over queries, "
            f"fragile below {self.bound:g})"
        )

    @property
    def metrics(self) -> dict[str, float]:
        """For the page of a run."""
        return {"fragile": float(self.fragile), "median Spearman of the worst": self.agreement[self.worst].median}

    def write(self, folder: Path) -> None:
        """Write fragility-<digest of the settings>.json."""
        said: dict[str, JSON] = {"fragile": self.fragile, "worst": self.worst, "sentence": self.sentence}
        atomic_write_json(folder / _name(self.settings), said | asdict(self))


def settings_digest(config: Config, workload: Workload) -> str:
    """Of everything that a verdict holds for; the data move from cycle to cycle, and are not in it."""
    given = config.model_dump(
        mode="json", by_alias=True, include={"workload", "training", "scoring"}, exclude=ELSEWHERE
    )
    return sha256_json([given, code_digest(workload)])


def warning(config: Config, workload: Workload) -> str:
    """One line where the workspace has a verdict on these very settings that says fragile, else nothing."""
    path = config.workspace / "validation" / _name(settings_digest(config, workload))
    kept = read_json(path) if path.exists() else {"fragile": False}
    if not kept["fragile"]:
        return ""
    return f"WARNING, {kept['sentence']}; average over seeds or raise scoring.damping"


def _name(settings: str) -> str:
    return f"fragility-{settings[:12]}.json"
