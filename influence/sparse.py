"""Per-point gradients of tables too large for one-hot inputs: a point touches the rows of its own tokens alone.

A factor holds the rows that each point touches, each once, with the gradient there summed over the positions that read
it. So the gradient of a point is a list of rows [d], and all that is done with it costs as many numbers as it touches,
however large the table is: no two rows meet in an inner product, and a Kronecker curvature, whose input basis is the
identity here (`layouts`), holds one eigenvalue for each entry of the table, of which a point reads its own rows.

Gradients of queries, held each for itself, are sparse tensors of torch, [k, V, d], as those of `nn.Embedding(sparse =
True)`; sums over many points, and what is solved of them, are dense, [k, d, V], like those of any other block.
"""

from collections.abc import Iterator, Sequence
from itertools import compress

import torch
from torch import Tensor

from influence.errors import InfluenceError
from influence.factored import Factor, add_weighted, dots, squared_norms

HELD_BY_ROWS = (
    "a table of {} rows is held by the rows that points touch, which only EK-FAC, K-FAC and the identity take, without "
    "compression; take one of these, or select other blocks"
)


class TableFactor(Factor):
    """Per-point gradients of a large table.

    Attributes:
        inputs: rows that each point touches, ascending, -1 where there is none, [B, T].
        g: gradients there, 0 where there is none, [B, T, d]; of several functions, [R, B, T, d].
        table: V.
    """

    table: int
    _rows: Tensor

    def __init__(self, rows: Tensor, g: Tensor, table: int) -> None:
        for name, value in (("_rows", rows), ("g", g), ("table", table)):
            object.__setattr__(self, name, value)  # frozen

    def __repr__(self) -> str:
        return f"TableFactor(inputs={self.inputs}, g={self.g}, table={self.table})"

    @classmethod
    def of(cls, tokens: Tensor, g: Tensor, table: int) -> "TableFactor":
        """From the token of each position, -1 for none, [B, T], which may repeat."""
        ordered, order = tokens.sort(1)
        fresh = torch.ones_like(ordered, dtype=torch.bool)
        fresh[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
        place = fresh.cumsum(1) - 1  # of each token among those of its point
        rows = torch.full_like(ordered, -1).scatter_(1, place, ordered)
        width = int(place.max()) + 1
        moved = g.take_along_dim(order[..., None].expand(g.shape), -2) * (ordered >= 0)[..., None]
        summed = torch.zeros_like(g).scatter_add_(-2, place[..., None].expand(g.shape), moved)
        return cls(rows[:, :width], summed[..., :width, :].contiguous(), table)

    @property
    def a(self) -> Tensor:
        """One-hot inputs, which are never formed.

        Raises:
            InfluenceError: always.
        """
        raise InfluenceError(HELD_BY_ROWS.format(self.table))

    @property
    def inputs(self) -> Tensor:
        """The rows that are touched."""
        return self._rows

    @property
    def shape(self) -> tuple[int, int]:
        """Of the block, (d, V)."""
        return self.g.shape[-1], self.table

    @property
    def elements(self) -> int:
        """Numbers in the gradient of one point that may be other than 0."""
        return self.g.shape[-1] * self.inputs.shape[1]

    def __getitem__(self, points: slice | Tensor) -> "TableFactor":
        return TableFactor(self.inputs[points], self.g[..., points, :, :], self.table)

    def at(self, g: Tensor) -> "TableFactor":
        """Other gradients at the same rows."""
        return TableFactor(self.inputs, g, self.table)

    def touched(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of everything that is touched: its point, its row [N], and its gradient [N, d] or [R, N, d]."""
        point, slot = (self.inputs >= 0).nonzero(as_tuple=True)
        return point, self.inputs[point, slot], self.g[..., point, slot, :]


def rows_at(places: Tensor, values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Sparse gradients [k, V, d] from which of them and which row each value is of, in that order [2, N]."""
    return torch.sparse_coo_tensor(places, values, shape, is_coalesced=True, check_invariants=False)


def stacked(parts: Sequence[TableFactor]) -> Tensor:
    """The gradients of all points one after the other, a sparse tensor [B, V, d]."""
    each = [part.touched() for part in parts]
    starts = torch.tensor([0, *(len(part) for part in parts)]).cumsum(0)
    points = torch.cat([point + start for (point, _, _), start in zip(each, starts)])
    places = torch.stack([points, torch.cat([row for _, row, _ in each])])
    values = torch.cat([value for _, _, value in each])
    return rows_at(places, values, (int(starts[-1]), parts[0].table, values.shape[1]))


def with_values(gradients: Tensor, values: Tensor) -> Tensor:
    """Other numbers at the rows that k sparse gradients touch."""
    return rows_at(gradients.indices(), values, tuple(gradients.shape))


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Sparse gradients one after the other."""
    return torch.cat(list(parts)).coalesce()


@squared_norms.register
def _(factor: TableFactor) -> Tensor:
    return factor.g.square().sum((1, 2))


@add_weighted.register
def _(factor: TableFactor, total: Tensor, weights: Tensor) -> None:
    point, row, value = factor.touched()
    total.index_add_(1, row, (value * weights[point, None]).to(total).T)


@dots.register
def _(factor: TableFactor, gradients: Tensor) -> Tensor:
    point, row, value = factor.touched()
    found = factor.g.new_zeros(len(factor), len(gradients))
    if not gradients.is_sparse:
        for column, one in zip(found.T, gradients):
            column.index_add_(0, point, (value * one.T[row]).sum(1))
        return found
    (query, of_query), held = gradients.indices(), gradients.values()
    for mine, theirs in _meetings(row, of_query):
        found[point[mine][:, None], query[theirs]] += value[mine] @ held[theirs].T  # a row stands once in each of them
    return found


def _meetings(left: Tensor, right: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """For each number that occurs in both: where."""
    (numbers, of_left), (others, of_right) = _places(left), _places(right)
    in_both, of_both = torch.isin(numbers, others), torch.isin(others, numbers)
    yield from zip(compress(of_left, in_both.tolist()), compress(of_right, of_both.tolist()))


def _places(numbers: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The different numbers, ascending, and the places of each."""
    ordered, order = numbers.sort(stable=True)
    each, counts = ordered.unique_consecutive(return_counts=True)
    return each, order.split(counts.tolist())
