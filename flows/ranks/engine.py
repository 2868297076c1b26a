"""DeepSpeed, opened in one place: how an engine is built and how its parameters come out of it."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from flows.ranks.activations import recompute
from flows.ranks.precision import in_precision
from flows.ranks.rank import COLLECTIVE_TIMEOUT
from flows.ranks.weights import weights_of
from flows.sections.deepspeed import merged
from flows.sections.training import TrainingConfig

OPTIMIZER = "AdamW"  # of every training of a cycle; trajectory.parquet names it


def connect(device: torch.device, backend: str) -> None:
    """Open DeepSpeed on the process group, without compiling its CPU operators (unused in training)."""
    os.environ["DS_ACCELERATOR"] = device.type  # it would choose for itself
    import deepspeed
    import deepspeed.ops
    from deepspeed.comm.torch import TorchBackend

    deepspeed.ops.__compatible_ops__ = {}
    # DeepSpeed's own groups would otherwise wait torch's 30 minutes for a lost rank
    TorchBackend.new_group = lambda _, ranks: dist.new_group(ranks, timeout=COLLECTIVE_TIMEOUT)
    deepspeed.init_distributed(backend, timeout=COLLECTIVE_TIMEOUT, verbose=False)


def settings_of(training: TrainingConfig, world: int) -> dict[str, Any]:
    """DeepSpeed's settings for a recipe on so many ranks."""
    zero: dict[str, Any] = {"stage": training.zero_stage}
    if training.offload == "cpu":
        zero["offload_optimizer"] = {"device": "cpu"}
    ours = {
        "train_micro_batch_size_per_gpu": training.batch_size // world // training.accumulation,
        "gradient_accumulation_steps": training.accumulation,
        "gradient_clipping": training.clipping,
        "bf16": {"enabled": training.precision == "bf16"},
        "steps_per_print": 10**9,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    return merged(ours, training.deepspeed)


def universal(folder: Path, tag: str, into: Path) -> None:
    """Write a state of ZeRO stage 1 to 3 once more, as one that any number of ranks can load; for one rank."""
    from deepspeed.checkpoint import ds_to_universal

    given = {"input_folder": str(folder / tag), "output_folder": str(into / tag), "strict": True}
    workers = {"num_extract_workers": 1, "num_merge_workers": 1}  # in this process
    ds_to_universal.main(Namespace(**given, **workers, keep_temp_folder=False, inject_missing_state=True))


class Engine:
    """One model in training, partitioned over the ranks by its ZeRO stage.

    Args:
        model: The model, with the same weights on every rank.
        training: Optimizer, batch and stage.
        world: Number of ranks.
        universal: The state to load is one that `universal` made.
    """

    def __init__(self, model: nn.Module, training: TrainingConfig, world: int, *, universal: bool = False) -> None:
        import deepspeed

        recompute(model, training.activation_checkpointing)
        in_precision(model, training.precision)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=training.weight_decay)  # see set_rate
        settings = settings_of(training, world) | {"checkpoint": {"load_universal": universal}}
        self._engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
        if training.zero_stage == 0 and training.precision == "bf16":
            optimizer.state.clear()  # DeepSpeed took a step on zeros here, which AdamW's bias correction would count
        self.model: nn.Module = self._engine
        """To be called on batches; gradients flow through it."""

    def set_rate(self, rate: float) -> None:
        """Give the next optimizer step its learning rate."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate

    def step(self, losses: Tensor) -> None:
        """Take the per-point losses `[B]` of this rank's next part of a step's points; with the last, take the step."""
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
            return weights_of(module)

    def close(self) -> None:
        """Free the engine's buffers and hooks."""
        self._engine.destroy()
