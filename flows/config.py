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
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from flows.errors import BadInput

Share = Annotated[float, Field(gt=0, le=1)]
Rate = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class WorkloadConfig(_Section):
    """Which class brings model, data and loss."""

    entry: str = Field(alias="class")
    """A built-in name (`digits`), `file.py:Class` beside the TOML, or `package.module:Class`."""
    options: dict[str, Any] = {}
    """Keyword arguments of the class."""


class TrainingConfig(_Section):
    """How every model of the cycle is trained: baseline, challenger, control and the out-of-fold models."""

    ranks: Count = 2
    seed: Annotated[int, Field(ge=0)] = 0
    epochs: Count = 40
    batch_size: Count = 64
    """Points per optimizer step, over all ranks."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-2
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 2
    checkpoints: tuple[Share, ...] = (0.25, 0.5, 0.75, 1.0)
    """Shares of the training at which parameters are saved; influence is summed over them."""
    turn_over: tuple[str, ...] = ()
    """Modules whose outputs every point sees through a mask of its own (turn-over dropout); none by default."""

    @model_validator(mode="after")
    def _consistent(self) -> TrainingConfig:
        if self.batch_size % self.ranks:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of ranks {self.ranks}")
        if list(self.checkpoints) != sorted(set(self.checkpoints)) or self.checkpoints[-1:] != (1.0,):
            raise ValueError(f"checkpoints {list(self.checkpoints)} must rise and end at 1.0")
        return self


class DampingConfig(_Section):
    """The damping of a curvature: `absolute`, `mean_eig` (a share of the mean eigenvalue) or `horizon`."""

    kind: Literal["absolute", "mean_eig", "horizon"] = "horizon"
    value: Annotated[float, Field(gt=0)] | None = None
    """The number for `absolute` and `mean_eig`; `horizon` takes 1/T + weight decay from the training."""

    @model_validator(mode="after")
    def _valued(self) -> DampingConfig:
        if (self.kind == "horizon") != (self.value is None):
            raise ValueError(f"kind {self.kind!r} {'takes no value' if self.kind == 'horizon' else 'needs a value'}")
        return self


EstimatorName = Literal["ekfac", "kfac", "dense", "dual", "arnoldi", "pcg", "identity"]


class BlocksConfig(_Section):
    """Which parameters influence is computed on; each key narrows what the keys before it left."""

    types: tuple[str, ...] = ()
    """Classes of modules, named as in torch.nn; default: Linear, Conv1d and Conv2d, or any where names are given."""
    names: tuple[str, ...] = ()
    """Globs over module names."""
    energy: Share | None = None
    """Few parameters that hold this share of the gradient energy."""
    last: Count | None = None
    """So many blocks at the end of the model."""
    budget: Count | None = None
    """As many blocks at the end of the model as hold at most this many parameters."""

    @model_validator(mode="before")
    @classmethod
    def _short(cls, given: Any) -> Any:
        if given == "auto":
            return {"energy": 0.9}
        return {"names": given} if isinstance(given, list | tuple) else given


class FactorCacheConfig(_Section):
    """What each rank may keep of per-point factors between passes, in megabytes; the rest is computed again."""

    memory: Annotated[int, Field(ge=0)] = 256
    disk: Annotated[int, Field(ge=0)] = 0
    """In a temporary file beside the scores, once memory is full."""


CompressionKind = Literal["mask", "sjlt", "mask+sjlt", "logra"]


class CompressionConfig(_Section):
    """How gradients are made smaller before anything is kept or solved; the same for train points and queries."""

    kind: CompressionKind = "mask"
    """Dropout of rows and columns of a layer, sparse random sums, the two together, or a random matrix on each side."""
    ratio: Annotated[float, Field(gt=1)] = 4.0
    """How many times smaller."""


class ScoringConfig(_Section):
    """How the points are scored."""

    ranks: Count = 2
    estimator: EstimatorName = "ekfac"
    """`tamis estimators` says what there is, what it costs and when to use it."""
    blocks: BlocksConfig = BlocksConfig()
    """A list of globs, `"auto"` for the few blocks that hold nine tenths of the gradient energy, or a table."""
    compression: CompressionConfig | None = None
    """Gradients are made smaller, and with them the curvature and what is kept; none by default."""
    fisher: Literal["exact", "sampled", "empirical"] = "exact"
    """Labels that the curvature is an expectation over: all, one drawn per point (large vocabularies), the given."""
    factor_cache: FactorCacheConfig = FactorCacheConfig()
    damping: DampingConfig | None = None
    """Default: the weight decay for ekfac and kfac, 1 for identity, else `horizon`."""
    exact_head: bool = True
    """Exact Gauss-Newton on the head beside EK-FAC, as a signal; false for a head of more than 4,096 parameters."""
    head_damping: DampingConfig = DampingConfig()
    """Of the exact Gauss-Newton on the head."""
    probe: Annotated[int, Field(ge=0)] = 50
    """Train points on which the blocks are compared with all parameters of the model, exactly; 0 for none."""
    chunk: Count = 256
    """Points per score shard; the grain at which ranks share the work."""
    folds: Annotated[int, Field(ge=2)] = 5
    repeats: Count = 2
    """How often the points are dealt into folds anew, in each of the two rounds of suspicion."""
    neighbours: Count = 15

    @model_validator(mode="after")
    def _compressed(self) -> ScoringConfig:
        if self.compression is not None and self.exact_head:
            raise ValueError("compression needs exact_head = false, which reads the head's gradients in full")
        if self.compression is not None and "sjlt" in self.compression.kind and self.estimator in ("ekfac", "kfac"):
            raise ValueError(
                f"compression by {self.compression.kind!r} leaves {self.estimator} no layers: take 'mask' or 'logra', "
                "or the estimator dual, arnoldi or pcg"
            )
        return self

    @field_validator("probe")
    @classmethod
    def _ranked(cls, probe: int) -> int:
        if 0 < probe < 10:
            raise ValueError("a rank correlation of so few points says nothing; give 0 or at least 10")
        return probe


class PruningConfig(_Section):
    """What may be proposed, and how much of it."""

    policies: tuple[Literal["harmful", "mislabeled"], ...] = ("harmful", "mislabeled")
    q: Rate = 0.2
    """False-discovery rate of each policy."""
    budget: Share = 0.15
    """Largest share of the train set removed in one cycle."""
    cumulative_budget: Share = 0.3
    """Largest share of the manifest that may stand removed."""
    class_budget: Share = 0.5
    """Largest share of one given label's points that may stand removed."""
    protected: tuple[int | str, ...] = ()
    """Ids that are never removed."""
    cooldown: Annotated[int, Field(ge=0)] = 2
    """Cycles during which a point that was restored, rejected or rolled back is not proposed again."""

    @field_validator("policies")
    @classmethod
    def _named_once(cls, policies: tuple[str, ...]) -> tuple[str, ...]:
        if not policies or len(set(policies)) < len(policies):
            raise ValueError("name at least one policy, each once")
        return policies


class ReviewConfig(_Section):
    """Who approves."""

    mode: Literal["auto", "manual"] = "manual"
    """`auto` approves what is within the budgets; `manual` waits for `tamis approve HASH`."""


class GuardrailConfig(_Section):
    """What must be shown before a model is promoted."""

    seeds: Annotated[int, Field(ge=2)] = 3
    tolerance: Annotated[float, Field(ge=0)] = 0.01
    """Nats per holdout point that the challenger may lose against baseline and champion."""
    group_tolerance: Annotated[float, Field(ge=0)] = 0.05
    """Nats per holdout point that a class may lose before promotion is refused."""
    resamples: Annotated[int, Field(ge=100)] = 2000


class LaunchConfig(_Section):
    """How ranks are watched."""

    heartbeat_seconds: Annotated[float, Field(gt=0)] = 300.0
    """A rank that shows no progress for this long is ended, and the stage fails."""


class Config(_Section):
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
    file: Path

    @model_validator(mode="after")
    def _damped(self) -> Config:
        by_decay = self.scoring.damping is None and self.scoring.estimator in ("ekfac", "kfac")
        if by_decay and not self.training.weight_decay:
            raise ValueError("scoring.damping defaults to the weight decay, which is 0: give it a kind and a value")
        return self

    @model_validator(mode="after")
    def _ranks_fit(self) -> Config:
        cores = len(os.sched_getaffinity(0))
        for section in ("training", "scoring"):
            ranks = getattr(self, section).ranks
            if ranks > cores:
                raise ValueError(f"{section}.ranks = {ranks}: this machine has {cores} cores; give at most {cores}")
        return self

    @property
    def name(self) -> str:
        """The data set's name."""
        return self.dataset or self.workload.entry.rsplit(":", 1)[-1]


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
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise BadInput(f"{path}: " + "; ".join(_explain(item) for item in error.errors())) from error


def _explain(item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"]) or "file"
    if item["type"] == "extra_forbidden":
        return f"{key}: unknown key (allowed in this section: {', '.join(_keys(item['loc'][:-1]))})"
    if item["type"] == "missing":
        return f"{key}: missing, and it has no default"
    given = "" if isinstance(item["input"], dict | BaseModel) else f" = {item['input']!r}"
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
