"""Keeping the Fisher roots of all train points: R gradients of each of n points, as factors in their own precision."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from influence.blocks import Block, Shapes
from influence.curvature.base import AllReduce, Snapshot, train_points
from influence.curvature.joint import Joint, add_up, runs
from influence.errors import InfluenceError
from influence.factored import Factor, Factors, materialise
from influence.sharding import WHOLE, Share


class KeptRoots:
    """The roots of this rank's points, batch by batch, until those of all ranks are gathered.

    Args:
        blocks: the blocks.
        share: this rank's; the points of rank 0 come first.

    Attributes:
        joint: the blocks.
        device: where they are, and the roots.
        batches: roots of points of weight 1, g of shape [R, B, T, o].
    """

    def __init__(self, blocks: Sequence[Block], share: Share) -> None:
        self.joint, self.device = Joint.of(blocks), blocks[0].device
        self.batches: list[Factors] = []
        self._share = share
        self._over = False

    def add(self, batch: Factors, weights: Tensor) -> None:
        """Keep the points of weight 1."""
        if self._over:
            raise InfluenceError("the only pass over the data is over")
        inside, factors = weights > 0, self.joint.parts(batch)
        if not inside.any():
            return
        kept = factors if inside.all() else [factor[inside] for factor in factors]
        self.batches.append(dict(zip(self.joint.names, kept)))

    def gather(self, all_reduce: AllReduce) -> Mapping[str, Factor]:
        """The roots of all ranks, by sums alone: each fills its own place in a tensor of zeros.

        Returns:
            a [n, T, i], g [R, n, T, o], with zeros where a point has fewer roots or positions than others.
        """
        table = torch.zeros(self._share.world, 3 + len(self.joint.names), dtype=torch.float64)
        table[self._share.rank] = torch.tensor(self._sizes())
        all_reduce(table)
        points = int(train_points(table[:, 0].sum()))
        first = int(table[: self._share.rank, 0].sum())
        double, roots, *positions = (int(size) for size in table[:, 1:].amax(0))
        dtype = torch.float64 if double else torch.float32
        gathered = {}
        for (name, (o, i)), t in zip(self.joint.shapes.items(), positions):
            a = torch.zeros(points, t, i, dtype=torch.float64, device=self.device)
            g = torch.zeros(roots, points, t, o, dtype=torch.float64, device=self.device)
            start = first
            for factor in (batch[name] for batch in self.batches):
                stop = start + len(factor)
                a[start:stop, : factor.a.shape[1]] = factor.a
                g[: len(factor.g), start:stop, : factor.a.shape[1]] = factor.g
                start = stop
            all_reduce(a)
            all_reduce(g)
            gathered[name] = Factor(a.to(dtype), g.to(dtype))
        self.close()
        return gathered

    def close(self) -> None:
        """No more points."""
        self.batches.clear()
        self._over = True

    def _sizes(self) -> list[int]:
        """This rank's points, whether they are float64, their most roots, and for each block its longest sequence."""
        factors = [self.joint.parts(batch) for batch in self.batches]
        points = sum(len(batch[0]) for batch in factors)
        roots = max((len(batch[0].g) for batch in factors), default=0)
        longest = [max((batch[b].a.shape[1] for batch in factors), default=0) for b in range(len(self.joint.names))]
        double = any(factor.a.dtype == torch.float64 for batch in factors for factor in batch)
        return [points, double, roots, *longest]


class OnRoots:
    """A curvature that keeps the Fisher roots of all points: what such ones share until the only pass ends.

    Args:
        blocks: the blocks.
        share: this rank's; every rank then holds the roots of all points.
    """

    passes = 1

    def __init__(self, blocks: Sequence[Block], share: Share = WHOLE) -> None:
        self._kept = KeptRoots(blocks, share)
        self._joint, self._device = self._kept.joint, self._kept.device

    @property
    def blocks(self) -> tuple[str, ...]:
        """The names of the blocks."""
        return self._joint.names

    @property
    def shapes(self) -> Shapes:
        """Of the blocks."""
        return self._joint.shapes

    def accumulate(self, batch: Factors, weights: Tensor) -> None:
        """Keep the Fisher roots of a batch."""
        self._kept.add(batch, weights)


class RestorableOnRoots(OnRoots, ABC):
    """One whose fit can be kept."""

    def restore(self, snapshot: Snapshot) -> None:
        """Take what was fitted by the same kind of curvature on the same blocks, in place of the pass."""
        self._kept.close()
        there = {name: {key: one.to(self._device) for key, one in part.items()} for name, part in snapshot.items()}
        self._take({name: Factor(one["a"], one["g"]) for name, one in there.items()}, there[self.blocks[0]])

    def _snapshot(self, roots: Factors, together: Mapping[str, Tensor]) -> Snapshot:
        """The roots by block, and what is of the blocks together under the first."""
        found = {name: {"a": factor.a, "g": factor.g} for name, factor in roots.items()}
        found[self.blocks[0]] |= together
        return found

    @abstractmethod
    def _take(self, roots: Factors, together: Mapping[str, Tensor]) -> None:
        """Take both back."""


def squared_sizes(roots: Factors) -> Tensor:
    """Squared norms of the roots over all blocks together, [B, R]."""
    return add_up(_squared_sizes(factor) for factor in roots.values())


def _squared_sizes(factor: Factor) -> Tensor:
    if factor.a.shape[1] == 1:
        return factor.a[:, 0].square().sum(1, keepdim=True) * factor.g[:, :, 0].square().sum(2).T
    found = runs(len(factor), len(factor.g) * factor.elements)
    return torch.cat([materialise(factor[run]).flatten(2).square().sum(2).T for run in found])
