"""Gradients of queries in full, as influence is measured on them: each for itself, or the means of groups.

Query readings hold gradients of minus the margin; times 1 - p_y = sigmoid(-margin) they are those of the loss, which
vanish on a confidently right query.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from influence.errors import InfluenceError
from influence.factored import Gradients, add_weighted, materialise
from influence.reading import Reading
from influence.sparse import TableFactor, stacked
from influence.tokens import IGNORED, are_targets


@dataclass(frozen=True)
class Queries:
    """Gradients of m queries.

    Attributes:
        gradients: of minus the margin, of texts of the loss, name -> [m, o, i]; of a large table sparse, [m, V, d].
        doubt: 1 - p_y, of texts 1: times this they are gradients of the loss, [m].
        labels: [m]; IGNORED of texts, which have none.
    """

    gradients: Gradients
    doubt: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Groups:
    """Mean loss gradients of k groups of queries.

    Attributes:
        gradients: name -> [k, o, i]; zero for a group without queries.
        sizes: queries in each group, [k].
    """

    gradients: Gradients
    sizes: Tensor


def each(readings: Iterable[Reading], count: int) -> Queries:
    """Hold every query for itself.

    Args:
        readings: of query points (`Reader.queries`).
        count: m; so that nothing is held twice.
    """
    full: dict[str, Tensor] = {}
    tables: dict[str, list[TableFactor]] = {}
    doubt, labels = list[Tensor](), list[Tensor]()
    seen = 0
    for reading in readings:
        rows = slice(seen, seen + len(reading.labels))
        seen = rows.stop
        if seen > count:
            break
        for name, factor in reading.losses.items():
            if isinstance(factor, TableFactor):
                tables.setdefault(name, []).append(factor)
                continue
            if name not in full:
                full[name] = factor.g.new_empty(count, *factor.shape)
            full[name][rows] = materialise(factor)
        given = reading.labels
        labels.append(given.new_full((len(given),), IGNORED) if are_targets(given) else given)
        doubt.append(_doubt(reading).double())
    if seen != count or not count:
        raise InfluenceError(f"{seen} queries read, {count} announced; give at least one, and all of them")
    return Queries(full | {name: stacked(parts) for name, parts in tables.items()}, torch.cat(doubt), torch.cat(labels))


def group_means(readings: Iterable[Reading], groups: Tensor, count: int) -> Groups:
    """Average the loss gradients within groups; memory grows with the groups, not with the queries.

    Args:
        readings: of query points (`Reader.queries`).
        groups: group of each query, in their order, [m], int64 in [0, count).
        count: k.
    """
    sums: dict[str, Tensor] = {}
    seen = 0
    for reading in readings:
        part = groups[seen : seen + len(reading.labels)].to(reading.labels.device)
        seen += len(reading.labels)
        if seen > len(groups):
            break
        members = one_hot(part, count).to(reading.logits) * _doubt(reading)[:, None]  # [b, k]
        for name, factor in reading.losses.items():
            if name not in sums:
                sums[name] = factor.g.new_zeros(count, *factor.shape)
            for group in part.unique().tolist():
                rows = part == group
                add_weighted(factor[rows], sums[name][group], members[rows, group])
    if seen != len(groups) or not seen:
        raise InfluenceError(f"{seen} queries read, {len(groups)} have a group; give at least one, and all of them")
    sizes = torch.bincount(groups, minlength=count).to(next(iter(sums.values())).device)
    return Groups({name: total / sizes.clamp(min=1)[:, None, None] for name, total in sums.items()}, sizes)


def _doubt(reading: Reading) -> Tensor:
    """1 - p_y = sigmoid(-margin), which does not round to 0 where p_y rounds to 1; 1 of texts."""
    if are_targets(reading.labels):
        return reading.logits.new_ones(len(reading.labels))
    given = one_hot(reading.labels, reading.logits.shape[1]).bool()
    margin = reading.logits[given] - reading.logits.masked_fill(given, -torch.inf).logsumexp(1)
    return torch.sigmoid(-margin)
