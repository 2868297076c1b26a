"""Inner products of gradients with each other, from their factors: <s a', s' a''> = (s's') (a'a'') for one position.

Gradients of longer sequences are formed, some outputs of the block at a time. Float64.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from influence.curvature.joint import add_up, runs
from influence.factored import Factor


@dataclass(frozen=True)
class Rows:
    """N gradients of one block, those of a point next to each other: row r is sum_t s_rt a_t' with its point's a.

    Attributes:
        a: of the points, [P, T, i].
        s: [N, T, o].
        point: of each row, ascending, [N].
    """

    a: Tensor
    s: Tensor
    point: Tensor

    @classmethod
    def of(cls, roots: Factor, present: Tensor) -> "Rows":
        """The roots that are present [P, R] of P points."""
        point, root = present.nonzero(as_tuple=True)
        return cls(roots.a, roots.g[root, point], point)

    @classmethod
    def single(cls, factor: Factor) -> "Rows":
        """One gradient of each point."""
        return cls(factor.a, factor.g, torch.arange(len(factor), device=factor.g.device))

    def __len__(self) -> int:
        return len(self.s)

    def __getitem__(self, rows: slice) -> "Rows":
        """A run of rows, with their points alone."""
        point = self.point[rows]
        first, last = int(point[0]), int(point[-1])
        return Rows(self.a[first : last + 1], self.s[rows], point - first)

    def outputs(self, some: slice) -> Tensor:
        """The gradients themselves at some outputs of the block, [N, outputs * i]."""
        width = (some.stop - some.start) * self.a.shape[2]
        formed = self.s.new_empty(len(self), width)
        for run in runs(len(self), max(width, self.a[0].numel())):
            formed[run] = (self.s[run, :, some].mT @ self.a[self.point[run]]).flatten(1)
        return formed


def cross(left: Rows, right: Rows) -> Tensor:
    """Inner products of each with each, [N left, N right]."""
    if left.a.shape[1] == right.a.shape[1] == 1:
        inputs = left.a[:, 0] @ right.a[:, 0].T  # of points, fewer than rows
        return (left.s[:, 0] @ right.s[:, 0].T).mul_(inputs[left.point][:, right.point])
    o, i = left.s.shape[2], left.a.shape[2]
    return add_up(left.outputs(some) @ right.outputs(some).T for some in runs(o, max(len(left), len(right)) * i))


def gram(blocks: Sequence[Rows]) -> Tensor:
    """The sum over blocks of the inner products of the rows with themselves, [N, N]."""
    count = len(blocks[0])
    full = blocks[0].s.new_empty(count, count)
    for run in runs(count, count):
        before = slice(0, run.stop)
        part = add_up(cross(rows[run], rows[before]) for rows in blocks)
        full[run, before] = part
        full[before, run] = part.T
    return full
