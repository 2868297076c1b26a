"""How the model of a workload is asked, with classes or without."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor
from torch.utils._pytree import tree_leaves

from flows.errors import BadInput
from flows.workload import PointSet, Workload
from influence.reading import Task

TEXTS = 16
"""Points that a language model reads at a time where a classifier reads more: every token has a logit per word."""


def has_classes(workload: Workload) -> bool:
    """Whether points have labels, and not targets at each of their tokens."""
    return callable(getattr(workload, "labels", None))


def task_of(workload: Workload) -> Task[Any]:
    """How the model of a workload is asked."""
    return Task(workload.logits, workload.labels if has_classes(workload) else getattr(workload, "targets"))  # noqa: B009


def labels_of(points: PointSet) -> Sequence[int] | None:
    """The given labels of a set, if it has any."""
    return getattr(points, "labels", None)


def lengths_of(points: PointSet) -> Sequence[int] | None:
    """How long each point is, where a batch is as wide as its longest.

    Raises:
        BadInput: There are more or fewer of them than points.
    """
    found: Sequence[int] | None = getattr(points, "lengths", None)
    if found is not None and len(found) != len(points):
        raise BadInput(f"`lengths` has {len(found)} values for {len(points)} points: give one for each, in their order")
    return found


def at_a_time(workload: Workload, batch: int) -> int:
    """So many points of a batch, or as many as a language model can read."""
    return batch if has_classes(workload) else min(batch, TEXTS)


def inputs_of(workload: Workload, batch: Any) -> Tensor:
    """What nearest neighbours are measured on: `[B, d]`."""
    own = getattr(workload, "inputs", None)
    if own is not None:
        return cast(Tensor, own(batch))
    for leaf in tree_leaves(batch):
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            return leaf.flatten(1)
    raise BadInput("the batch holds no floating tensor: give the workload a method inputs(batch) -> Tensor[B, d]")
