"""Section `training`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from flows.sections import deepspeed
from flows.sections.base import Count, Precision, Rate, Section, Share
from storage.files import JSON

EXECUTION = {"ranks", "accumulation", "activation_checkpointing", "offload", "zero_stage", "resume_every", "keep"}
"""Keys that change how a model is trained, but nothing of the model beyond rounding."""


class EarlyStoppingConfig(Section):
    """The baseline's training ends once the mean loss on the query set no longer falls."""

    every: Share = 0.05
    """Share of the planned training after which the loss is taken."""
    patience: Count = 3
    """How often in a row it may fail to fall below the lowest."""


class KeepConfig(Section):
    """Of how many cycles, the newest, a role's checkpoints stay on disk; those that the ledger cites stay for ever."""

    baseline: Count = 3
    challenger: Count = 1
    control: Count = 1


class DropConfig(Section):
    """Points that harm leave a training between epochs, for that training alone."""

    from_epoch: Count = 5
    """The epoch after which points are scored, and the worst dropped, first."""
    every: Count = 5
    """And again after so many more."""
    fraction: Rate = 0.02
    """Largest share of its points that a training drops at a time."""
    cap: Rate = 0.05
    """And in all. It is set aside from `pruning.budget`: a proposal may take what is left."""

    def due(self, epoch: int) -> bool:
        """Whether points are dropped after an epoch."""
        return epoch >= self.from_epoch and (epoch - self.from_epoch) % self.every == 0

    @model_validator(mode="after")
    def _consistent(self) -> DropConfig:
        if self.fraction > self.cap:
            raise ValueError(f"fraction {self.fraction} is above cap {self.cap}: give at most the cap")
        return self


class TrainingConfig(Section):
    """How every model of the cycle is trained: baseline, challenger, control and the out-of-fold models."""

    command: tuple[str, ...] = ()
    """Trains a model in place of our ranks, for teams with a trainer of their own; README.md says what it is given and
    must leave. The recipe then says how out-of-fold models are trained, and how many steps there are."""
    ranks: Count = 2
    seed: Annotated[int, Field(ge=0)] = 0
    epochs: Count = 40
    early_stopping: EarlyStoppingConfig | None = None
    """Ends the training of the first baseline; every arm then takes as many steps, at the same learning rates."""
    prune_while_learning: DropConfig | None = None
    """Of every arm alike; the models of the suspicion and of `tamis validate` see all their points."""
    batch_size: Count = 64
    """Points per optimizer step, over all ranks."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-2
    """Of AdamW; the largest, where there is a schedule."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate falls after the warmup: not at all, or towards 0 at the end."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the training in which the learning rate rises from 0 in equal steps."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    clipping: Annotated[float, Field(ge=0)] = 0.0
    """Largest norm of a step's gradient, above which it is scaled down; 0: none."""
    precision: Precision = "fp32"
    """bf16: the model computes in bfloat16 on float32 master weights; out-of-fold models and scores stay in float32."""
    accumulation: Count = 1
    """Backward passes per optimizer step: a step's points in so many parts, for less memory."""
    activation_checkpointing: tuple[str, ...] = ()
    """Globs over names of modules whose activations are computed again in the backward pass instead of being kept."""
    offload: Literal["none", "cpu"] = "none"
    """cpu: the optimizer and its state are in the memory of the CPU; with ZeRO stage 2 or 3."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 2
    deepspeed: dict[str, Any] = Field(default_factory=dict)
    """Anything else that DeepSpeed knows: a table, or a JSON file beside the TOML; no key that stands here."""
    checkpoints: tuple[Share, ...] = (0.25, 0.5, 0.75, 1.0)
    """Shares of the training at which parameters are saved; influence is summed over them."""
    resume_every: Share = 0.25
    """Share of a training after which its state is saved, as it is at `checkpoints`: what a crash costs at most. A
    share, so that it fits a training of any length; a state takes three times the parameters' bytes."""
    keep: KeepConfig = KeepConfig()
    turn_over: tuple[str, ...] = ()
    """Modules whose outputs every point sees through a mask of its own (turn-over dropout); none by default."""

    def recipe(self) -> dict[str, JSON]:
        """What a trained model depends on: a model is known by it, whatever it is trained with."""
        return self.model_dump(mode="json", exclude=EXECUTION)

    @field_validator("deepspeed", mode="before")
    @classmethod
    def _read(cls, given: Any, info: ValidationInfo) -> Any:
        return deepspeed.read(info.context["folder"] / given) if isinstance(given, str) and info.context else given

    @field_validator("deepspeed")
    @classmethod
    def _not_owned(cls, given: dict[str, Any]) -> dict[str, Any]:
        deepspeed.refuse_owned(given)
        return given

    @model_validator(mode="after")
    def _consistent(self) -> TrainingConfig:
        if self.batch_size % self.ranks:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of ranks {self.ranks}")
        if self.batch_size % (self.ranks * self.accumulation):
            times = f"ranks {self.ranks} x accumulation {self.accumulation}"
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of {times}")
        if self.command and self.early_stopping:
            raise ValueError("early_stopping is not for a command of your own: leave one of them out")
        if self.prune_while_learning:
            self._can_drop(self.prune_while_learning)
        if self.offload == "cpu" and self.zero_stage < 2:
            raise ValueError(
                f"offload 'cpu' with zero_stage {self.zero_stage}: give zero_stage 2 or 3, or offload 'none'"
            )
        if list(self.checkpoints) != sorted(set(self.checkpoints)) or self.checkpoints[-1:] != (1.0,):
            raise ValueError(f"checkpoints {list(self.checkpoints)} must rise and end at 1.0")
        return self

    def _can_drop(self, drops: DropConfig) -> None:
        if self.command:
            raise ValueError("prune_while_learning is not for a command of your own, whose epochs we do not see")
        if self.turn_over:
            raise ValueError("prune_while_learning is not for turn_over, whose influence takes a point for trained on")
        if drops.from_epoch >= self.epochs:
            raise ValueError(
                f"prune_while_learning.from_epoch {drops.from_epoch} of {self.epochs} epochs drops nothing: give an "
                "earlier one"
            )
