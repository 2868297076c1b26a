"""A model to be read whose parameters are partitioned over the ranks, each gathered only while its layer runs.

A frozen ZeRO-3 engine of DeepSpeed without an optimizer: hooks of ours see activations and output gradients as on a
plain model. Each rank builds the model whole before it is partitioned. Every forward and backward pass is one of all
ranks together, so all must run as many.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from flows.errors import BadInput
from flows.ranks.rank import Place
from influence import Blocks
from influence.convolutions import ConvLayout
from influence.layouts import LinearLayout

LEAN = {
    "stage": 3,
    "stage3_param_persistence_threshold": 0,  # DeepSpeed would leave small parameters whole
    "stage3_max_live_parameters": 0,  # and gather ahead, and keep what it has gathered
    "stage3_max_reuse_distance": 0,
    "stage3_prefetch_bucket_size": 0,
}


@contextmanager
def partitioned(model: nn.Module, blocks: Blocks) -> Iterator[nn.Module]:
    """Partition a model in place; every rank must call this together, with the same weights.

    Args:
        model: Whole; its blocks have been selected.
        blocks: Linear and convolutional layers.

    Raises:
        BadInput: Another block, whose gradients need its parameters themselves.
    """
    import deepspeed

    for block in blocks:
        if not isinstance(block.layout, LinearLayout | ConvLayout):
            raise BadInput(
                f"block {block.name}: scoring.placement = 'partitioned' reads linear and convolutional layers; select "
                "others, or take 'replicated'"
            )
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "steps_per_print": 10**9,
        "zero_optimization": LEAN,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": next(model.parameters()).dtype == torch.bfloat16},
    }
    engine, *_ = deepspeed.initialize(model=model.eval().requires_grad_(False), config=settings)
    try:
        yield engine.module
    finally:
        engine.destroy()


def in_step(items: Sequence[int], place: Place, together: bool) -> Iterator[tuple[int, bool]]:
    """This rank's items, True; then item 0, False, as long as other ranks have more, for passes that are thrown away.

    Args:
        items: Of this rank.
        place: This process.
        together: Whether a pass is one of all ranks, which then must call this together; else there is nothing to add.
    """
    most = torch.zeros(place.world, dtype=torch.float64)
    if together:
        most[place.index] = len(items)
        place.sum(most)
    yield from ((item, True) for item in items)
    yield from ((0, False) for _ in range(int(most.max()) - len(items)))
