"""Section `training`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from flows.sections.base import Count, Section, Share


class TrainingConfig(Section):
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
    resume_every: Share = 0.25
    """Share of a training after which its state is saved, as it is at `checkpoints`: what a crash costs at most. A
    share, so that it fits a training of any length; a state takes three times the parameters' bytes. 1.0: none."""
    turn_over: tuple[str, ...] = ()
    """Modules whose outputs every point sees through a mask of its own (turn-over dropout); none by default."""

    @model_validator(mode="after")
    def _consistent(self) -> TrainingConfig:
        if self.batch_size % self.ranks:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of ranks {self.ranks}")
        if list(self.checkpoints) != sorted(set(self.checkpoints)) or self.checkpoints[-1:] != (1.0,):
            raise ValueError(f"checkpoints {list(self.checkpoints)} must rise and end at 1.0")
        return self
