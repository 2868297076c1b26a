"""Queries read and solved in parts, each by one rank, and held by all: what is dear of them is done once."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from influence.curvature.base import Curvature, Preconditioned
from influence.factored import Gradients
from influence.queries import Queries
from influence.scores import SolvedScorer
from influence.sharding import Share
from influence.sparse import joined, rows_at

Broadcast = Callable[[Tensor, int], None]


def share_queries(
    curvatures: Sequence[Curvature],
    read: Callable[[int], Queries],
    sizes: Sequence[int],
    points: int,
    share: Share,
    broadcast: Broadcast,
) -> list[SolvedScorer]:
    """Solve each part on one rank and send it to the others, block by block; every rank must call this together.

    A part is solved in the same way on any rank, so that the scores are the same on any number of them.

    Args:
        curvatures: finished.
        read: a part's queries, on the blocks of all curvatures.
        sizes: queries in each part.
        points: n, the number of points in the train set.
        share: this rank's.
        broadcast: sends a tensor of a rank to all others, in place.

    Returns:
        Of each curvature, with the points' own terms.
    """
    rows, m = _rows(sizes), sum(sizes)
    held: list[Preconditioned] = []
    whole: list[dict[str, Tensor]] = [{} for _ in curvatures]
    tables: list[dict[str, dict[int, Tensor]]] = [{} for _ in curvatures]  # sparse, and so of different sizes
    asked: dict[str, Tensor] = {}
    mine = share.of(len(sizes))
    idle = -(-len(sizes) // share.world) - len(mine)  # then part 0 again: all ranks make as many passes as each other
    for part in (*mine, *[0] * idle):
        queries = read(part)
        _fill(asked, {"doubt": queries.doubt}, rows[part], m)
        held = [_against(curvature, queries) for curvature in curvatures]
        for full, sparse, one in zip(whole, tables, held):
            _fill(full, {name: tensor for name, tensor in one.solved.items() if not tensor.is_sparse}, rows[part], m)
            for name in one.solved.keys() - full.keys():
                sparse.setdefault(name, {})[part] = one.solved[name]
    for part, run in enumerate(rows):
        for tensor in (*asked.values(), *(tensor for full in whole for tensor in full.values())):
            broadcast(tensor[run], part % share.world)
    for full, sparse, one in zip(whole, tables, held):
        sent = {name: _send(sparse[name], sizes, share, broadcast) for name in one.solved if name in sparse}
        one.solved = full | sent
    return [SolvedScorer(one, asked["doubt"], points) for one in held]


def _rows(sizes: Sequence[int]) -> list[slice]:
    return [slice(sum(sizes[:part]), sum(sizes[: part + 1])) for part in range(len(sizes))]


def _against(curvature: Curvature, queries: Queries) -> Preconditioned:
    return curvature.against({name: queries.gradients[name] for name in curvature.blocks}, own=True, step=True)


def _send(parts: Mapping[int, Tensor], sizes: Sequence[int], share: Share, broadcast: Broadcast) -> Tensor:
    """The sparse gradients of all parts, from the rank of each."""
    like, whole = next(iter(parts.values())), []
    for part, size in enumerate(sizes):
        source = part % share.world
        mine = parts[part] if share.rank == source else None
        count = torch.tensor([0 if mine is None else len(mine.values())])
        broadcast(count, source)
        places = like.indices().new_empty(2, int(count)) if mine is None else mine.indices().contiguous()
        values = like.values().new_empty(int(count), like.shape[2]) if mine is None else mine.values().contiguous()
        broadcast(places, source)
        broadcast(values, source)
        whole.append(rows_at(places, values, (size, *like.shape[1:])))
    return joined(whole)


def _fill(full: dict[str, Tensor], solved: Gradients, rows: slice, count: int) -> None:
    for name, tensor in solved.items():
        if name not in full:
            full[name] = tensor.new_empty(count, *tensor.shape[1:])
        full[name][rows] = tensor
