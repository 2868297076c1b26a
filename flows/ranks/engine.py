"""DeepSpeed, opened in one place: how an engine is built and how its parameters come out of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from flows.ranks.rank import COLLECTIVE_TIMEOUT
from flows.sections.training import TrainingConfig


def connect() -> None:
    """Open the process group through DeepSpeed, without compiling its CPU operators (unused in training)."""
    import deepspeed
    import deepspeed.ops
    from deepspeed.comm.torch import TorchBackend

    deepspeed.ops.__compatible_ops__ = {}
    # DeepSpeed's own groups would otherwise wait torch's 30 minutes for a lost rank
    TorchBackend.new_group = lambda _, ranks: dist.new_group(ranks, timeout=COLLECTIVE_TIMEOUT)
    deepspeed.init_distributed("gloo", timeout=COLLECTIVE_TIMEOUT, verbose=False)


class Engine:
    """One model in training, partitioned over the ranks by its ZeRO stage.

    Args:
        model: The model, with the same weights on every rank.
        training: Optimizer, batch and stage.
        world: Number of ranks.
    """

    def __init__(self, model: nn.Module, training: TrainingConfig, world: int) -> None:
        import deepspeed

        optimizer = torch.optim.AdamW(model.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay)
        settings = {
            "train_micro_batch_size_per_gpu": training.batch_size // world,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": 0.0,  # DeepSpeed's default is a norm of 1, which would be another recipe
            "steps_per_print": 10**9,
            "zero_optimization": {"stage": training.zero_stage},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        }
        self._engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
        self.model: nn.Module = self._engine
        """To be called on batches; gradients flow through it."""

    def step(self, losses: Tensor, rate: float) -> None:
        """One optimizer step at a learning rate, on the mean of this rank's per-point losses `[B]`, over the ranks."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate
        self._engine.backward(losses.mean())
        self._engine.step()

    def share_buffers(self) -> None:
        """Give every rank the buffers of rank 0, which are the ones saved (batch statistics differ between ranks)."""
        for buffer in self._engine.module.buffers():
            dist.broadcast(buffer, 0)

    def buffers(self) -> dict[str, Tensor]:
        """This rank's own."""
        return dict(self._engine.module.named_buffers())

    def set_buffers(self, buffers: Mapping[str, Tensor]) -> None:
        """Give this rank what `buffers` found."""
        for name, buffer in self._engine.module.named_buffers():
            buffer.copy_(buffers[name])

    def save_state(self, folder: Path, tag: str) -> None:
        """Write parameters and optimizer as DeepSpeed does, into a folder; every rank must call this together."""
        self._engine.save_checkpoint(str(folder), tag=tag, save_latest=False)

    def load_state(self, folder: Path, tag: str) -> None:
        """Read what `save_state` wrote, into an engine just made; every rank must call this together."""
        self._engine.load_checkpoint(str(folder), tag=tag)

    def weights(self) -> dict[str, NDArray[Any]]:
        """The whole parameters and buffers in float32; every rank must call this together."""
        from deepspeed import zero

        module: nn.Module = self._engine.module
        with zero.GatheredParameters(list(module.parameters()), modifier_rank=None):
            return {name: value.detach().float().cpu().numpy().copy() for name, value in module.state_dict().items()}

    def close(self) -> None:
        """Free the engine's buffers and hooks."""
        self._engine.destroy()
