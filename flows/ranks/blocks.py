"""Which blocks are scored: their gradient energy, measured once, on a probe of train points at the last checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from flows.asking import has_classes, task_of
from flows.estimators import selections
from flows.ranks.points import Points
from flows.ranks.rank import Place
from flows.sections.scoring import BlocksConfig
from flows.workload import Workload
from influence import Blocks, Share, available, body, features, large_output, point_energies, select

PROBE = 256


def chosen_blocks(model: nn.Module, workload: Workload, config: BlocksConfig, energies: Mapping[str, float]) -> Blocks:
    """The configured blocks; of a language model that names none, all layers but a large output."""
    return select(model, *selections(config, energies, features if has_classes(workload) else body))


def left_out(model: nn.Module, workload: Workload, config: BlocksConfig) -> str:
    """What of a language model is no block unless it is named, and why; empty if nothing is."""
    output = large_output(available(model))
    if has_classes(workload) or config.types or config.names or output is None:
        return ""
    if not any(one.requires_grad for one in output.module.parameters(recurse=False)):
        return ""  # beside adapters: no block for another reason
    rows = output.weight_shape[0]
    memory = rows * rows * 8 / 1e9  # as a Kronecker curvature keeps them, in float64
    return f"without {output.name}, the output layer: eigenvectors for its {rows:,} rows would take {memory:,.1f} GB"


def measure_energies(model: nn.Module, workload: Workload, points: Points, place: Place) -> dict[str, float]:
    """Mean squared gradient norm of every block of a model over the probe; every rank must call this together.

    A point's gradient is computed alone, and the sum over ranks only fills in what others computed: the energies, and
    so the blocks, are the same to the last bit on any number of ranks.
    """
    place.progress("measuring the blocks", 0, 1)
    probe = drawn(points, PROBE)
    names = [block.name for block in available(model)]
    squares = torch.zeros(len(probe), len(names), dtype=torch.float64)
    mine = list(Share(place.index, place.world).of(len(probe)))
    task = task_of(workload)
    squares[mine] = point_energies(model.eval(), task, (points.take(probe[[row]]) for row in mine)).cpu()
    place.sum(squares)
    return dict(zip(names, squares.mean(0).tolist()))


def drawn(points: Points, count: int) -> Tensor:
    """Places of at most so many train points, by the hash of their ids: the same whoever asks."""
    inside = points.in_train.nonzero()[:, 0]
    chosen = points.keys[inside].argsort(stable=True)[:count]
    return inside[chosen].sort().values
