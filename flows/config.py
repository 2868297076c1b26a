"""The settings of a cycle: pydantic models of tamis.toml, one frozen object.

Every key has a default that the README shows at work, so the smallest file names a workspace and a workload. An error
names the key, the value and the remedy; an unknown key is an error. Changing a key changes the digest that the stages
it concerns are keyed by, and nothing else.
"""

from __future__ import annotations

import inspect
import os
import tomllib
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, Field, ValidationError, model_validator

from flows.errors import BadInput
from flows.sections.base import SECRET, Section
from flows.sections.curation import GuardrailConfig, PruningConfig, ReviewConfig
from flows.sections.launching import Hosts, LaunchConfig, Torchrun, nodes_of
from flows.sections.retention import RetentionConfig
from flows.sections.scoring import ScoringConfig
from flows.sections.servers import ServersConfig
from flows.sections.service import ServiceConfig
from flows.sections.training import TrainingConfig


class WorkloadConfig(Section):
    """Which class brings model, data and loss."""

    entry: str = Field(alias="class")
    """A built-in name (`digits`), `file.py:Class` beside the TOML, or `package.module:Class`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the class."""


class Config(Section):
    """The whole of tamis.toml, resolved: `workspace` is absolute and `file` is the file itself."""

    workspace: Path
    dataset: str = ""
    """Name of the data set, which names the MLflow experiment and the registered model; default: the workload's."""
    orchestrator: Literal["prefect", "none"] = "prefect"
    """`none` runs the same stages without Prefect (cron on a machine without its server)."""
    workload: WorkloadConfig
    training: TrainingConfig = TrainingConfig()
    scoring: ScoringConfig = ScoringConfig()
    pruning: PruningConfig = PruningConfig()
    review: ReviewConfig = ReviewConfig()
    guardrail: GuardrailConfig = GuardrailConfig()
    launch: LaunchConfig = LaunchConfig()
    service: ServiceConfig = ServiceConfig()
    retention: RetentionConfig = RetentionConfig()
    servers: ServersConfig = ServersConfig()
    file: Path

    @model_validator(mode="after")
    def _damped(self) -> Config:
        by_decay = self.scoring.damping is None and self.scoring.estimator in ("ekfac", "kfac")
        if by_decay and not self.training.weight_decay:
            raise ValueError("scoring.damping defaults to the weight decay, which is 0: give it a kind and a value")
        return self

    @model_validator(mode="after")
    def _masked(self) -> Config:
        if self.training.turn_over and self.scoring.placement == "partitioned":
            raise ValueError("training.turn_over needs scoring.placement = 'replicated'")
        return self

    @model_validator(mode="after")
    def _within_the_budget(self) -> Config:
        drops = self.training.prune_while_learning
        if drops and drops.cap >= self.pruning.budget:
            raise ValueError(
                f"training.prune_while_learning.cap = {drops.cap} leaves nothing of pruning.budget = "
                f"{self.pruning.budget} for a proposal: give less, or a larger budget"
            )
        return self

    @property
    def proposable(self) -> float:
        """Share of the train set that a proposal may take: the budget less what a training may drop by itself."""
        drops = self.training.prune_while_learning
        return self.pruning.budget - (drops.cap if drops else 0.0)

    @model_validator(mode="after")
    def _ranks_fit(self) -> Config:
        launcher, cores = self.launch.launcher, len(os.sched_getaffinity(0))
        for section in ("training", "scoring"):
            ranks = getattr(self, section).ranks
            if isinstance(launcher, Torchrun) and ranks % launcher.nnodes:
                raise ValueError(
                    f"{section}.ranks = {ranks} are no multiple of launch.launcher.nnodes = {launcher.nnodes}"
                )
            if isinstance(launcher, Hosts) and ranks != sum(launcher.slots.values()):
                raise ValueError(f"{section}.ranks = {ranks}: the slots of {launcher.hostfile} are another number")
            if ranks // nodes_of(launcher) > cores and not self.launch.oversubscribe:
                raise ValueError(
                    f"{section}.ranks = {ranks}: this machine has {cores} cores; give at most {cores}, or set "
                    "launch.oversubscribe = true"
                )
        return self

    @property
    def name(self) -> str:
        """The data set's name."""
        return dataset_name(self.dataset, self.workload.entry)


def dataset_name(dataset: str, entry: str) -> str:
    """The data set's name by the two keys that say it."""
    return dataset or entry.rsplit(":", 1)[-1]


def load(path: Path) -> Config:
    """Read and check a tamis.toml.

    Args:
        path: The file.

    Raises:
        BadInput: One line for all that is wrong with the file.
    """
    if not path.is_file():
        raise BadInput(f"{path}: no such file; `tamis init DIR` writes one")
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: not TOML: {error}") from error
    if "file" in raw:
        raise BadInput(f"{path}: file: unknown key")
    raw["file"] = path.resolve()
    raw["workspace"] = path.resolve().parent / str(raw.get("workspace", "workspace"))
    launcher = raw["launch"].get("launcher") if isinstance(raw.get("launch"), dict) else None
    if isinstance(launcher, dict) and isinstance(launcher.get("hostfile"), str):
        launcher["hostfile"] = path.resolve().parent / launcher["hostfile"]
    try:
        return Config.model_validate(raw, context={"folder": path.resolve().parent})
    except ValidationError as error:
        raise BadInput(f"{path}: " + "; ".join(_explain(item) for item in error.errors())) from error


def _explain(item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"]) or "file"
    if item["type"] == "extra_forbidden":
        return f"{key}: unknown key (allowed in this section: {', '.join(_keys(item['loc'][:-1]))})"
    if item["type"] == "missing":
        return f"{key}: missing, and it has no default"
    given = "" if isinstance(item["input"], dict | BaseModel) or item["type"] == SECRET else f" = {item['input']!r}"
    return f"{key}{given}: {item['msg'].removeprefix('Value error, ')}"


def _keys(section: tuple[int | str, ...]) -> list[str]:
    model: type[BaseModel] = Config
    for part in section:
        annotation = model.model_fields[str(part)].annotation
        model = next(
            kind
            for kind in (annotation, *get_args(annotation))
            if inspect.isclass(kind) and issubclass(kind, BaseModel)
        )
    return [field.alias or name for name, field in model.model_fields.items() if name != "file"]
