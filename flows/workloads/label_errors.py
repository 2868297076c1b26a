"""Label errors planted on purpose, so that the truth is known: given labels made from true ones.

Notation: N images, of which `rows` are the train set; labels `[N]`, int64. Nothing is changed in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

Corruption: TypeAlias = Literal["flips", "class_dependent", "systematic", "mixed", "foreign"]
"""`flips` gives a share of the train points a random wrong label; `class_dependent` the label of a class that theirs is
taken for; `systematic` labels a visible subgroup as another class; `mixed` is half `systematic`, half `flips`; in
`foreign` a share of the points are of another domain, half as bright, and labelled as in `class_dependent`."""


def check_rate(rate: float) -> None:
    """Refuse a share of wrong labels outside 0 to 1."""
    if not 0 <= rate <= 1:
        raise ValueError(f"rate = {rate}: give a share from 0 to 1")


def flipped(true: Tensor, rows: Tensor, rate: float, classes: int, generator: torch.Generator) -> Tensor:
    """Give a share of the rows a random wrong label, each other class as likely."""
    picked = _picked(rows, rate, generator)
    shift = torch.randint(1, classes, (len(picked),), generator=generator)
    return _replaced(true, picked, (true[picked] + shift) % classes)


def flipped_besides(
    given: Tensor, true: Tensor, rows: Tensor, rate: float, classes: int, generator: torch.Generator
) -> Tensor:
    """Give a share of the rows a random wrong label, all of them such as carry their true one."""
    right = rows[given[rows] == true[rows]]
    return flipped(given, right, rate * len(rows) / len(right), classes, generator)


def foreign(
    images: Tensor, true: Tensor, rows: Tensor, rate: float, taken_for: Sequence[int], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Make a share of the images `[N, d]` half as bright, labelled by another rule: images and given labels."""
    picked = _picked(rows, rate, generator)
    dimmed = images.clone()
    dimmed[picked] = (images[picked] / 2).to(images.dtype)
    return dimmed, _replaced(true, picked, torch.tensor(taken_for)[true[picked]])


def refuse(corruption: str) -> ValueError:
    """Of an unknown corruption."""
    return ValueError(f"corruption = {corruption!r}: give one of {', '.join(map(repr, get_args(Corruption)))}")


def confused(true: Tensor, rows: Tensor, rate: float, taken_for: Sequence[int], generator: torch.Generator) -> Tensor:
    """Give a share of the rows the one label that their class is taken for."""
    picked = _picked(rows, rate, generator)
    return _replaced(true, picked, torch.tensor(taken_for)[true[picked]])


def misled(labels: Tensor, rows: Tensor, visible: Tensor, count: int, label: int) -> Tensor:
    """Give the `count` rows where `visible` `[len(rows)]` is largest the same wrong label.

    Raises:
        ValueError: There are fewer rows.
    """
    if count > len(rows):
        raise ValueError(
            f"{count} points of one class are to be labelled {label}, the train set has {len(rows)}: lower the rate"
        )
    return _replaced(labels, rows[visible.argsort(descending=True)[:count]], label)


def _picked(rows: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    return rows[torch.randperm(len(rows), generator=generator)[: round(rate * len(rows))]]


def _replaced(labels: Tensor, rows: Tensor, wrong: Tensor | int) -> Tensor:
    given = labels.clone()
    given[rows] = wrong
    return given
