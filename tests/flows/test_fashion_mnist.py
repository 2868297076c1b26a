"""Fashion-MNIST on a folder of random pictures that the tests write, and once on the real files."""

import gzip
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import default_collate

from flows.config import load
from flows.dataset import read_sets
from flows.errors import BadInput
from flows.workload import Batches, load_workload
from flows.workloads.fashion_mnist import COAT, FOLDER, PULLOVER, SANDAL, SNEAKER, TAKEN_FOR, FashionMnist
from flows.workloads.images import ImageSet
from flows.workloads.label_errors import flipped
from tests.flows.helpers import write_toml

TRAIN, TEST, TWICE = 400, 150, 3  # images in the files, and how many of them are copies of another


def packed(raw: bytes) -> bytes:
    """Gzip without the time of day, which would make tests of other names in each of pytest-xdist's processes."""
    return gzip.compress(raw, 1, mtime=0)


def write_idx(path: Path, values: Tensor) -> None:
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    path.write_bytes(packed(bytes([0, 0, 8, values.ndim]) + sizes + values.numpy().tobytes()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four IDX files of random pictures, ten classes in turn, brightness apart; three pictures stand there twice."""
    folder = tmp_path_factory.mktemp("fashion")
    generator = torch.Generator().manual_seed(0)
    light = torch.linspace(0.2, 1, TRAIN + TEST)[torch.randperm(TRAIN + TEST, generator=generator)]
    images = (torch.rand(TRAIN + TEST, 28, 28, generator=generator) * 255 * light[:, None, None]).byte()
    labels = (torch.arange(TRAIN + TEST) % 10).byte()
    images[7] = images[2]  # within the train images, and with another label
    images[TRAIN + 3] = images[5]  # across the files
    images[TRAIN + 9] = images[TRAIN + 8]  # within the test images
    for part, rows in (("train", slice(TRAIN)), ("t10k", slice(TRAIN, None))):
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", images[rows])
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", labels[rows])
    return folder


def small(folder: Path, **options: Any) -> FashionMnist:
    return FashionMnist(**{"points": 300, "queries": 40, "holdout": 60, "folder": str(folder), **options})


def wrong(workload: FashionMnist) -> dict[int, tuple[int, int]]:
    """True and given label of the points that carry a wrong one."""
    points, true = workload.points(), workload.truth()
    return {id_: (true[id_], given) for id_, given in zip(points.ids, points.labels) if given != true[id_]}


def pictures(points: ImageSet) -> set[bytes]:
    return {points[row][0].numpy().tobytes() for row in range(len(points))}


def test_images_and_labels_are_those_of_the_files(folder: Path) -> None:
    points = small(folder, rate=0.0).points()
    raw = gzip.decompress((folder / "train-images-idx3-ubyte.gz").read_bytes())[16:]
    for row, id_ in enumerate(points.ids):
        image, label = points[row]
        assert image.numpy().tobytes() == raw[id_ * 784 : (id_ + 1) * 784]
        assert label == points.labels[row] == id_ % 10


def test_points_are_train_images_and_queries_and_holdout_test_images(folder: Path) -> None:
    workload = small(folder)
    sets = (workload.points(), workload.queries(), workload.holdout())
    assert [len(points) for points in sets] == [300, 40, 60]
    assert max(workload.points().ids) < TRAIN <= min(workload.queries().ids + workload.holdout().ids)
    read_sets(workload)  # refuses sets that overlap


def test_an_image_that_stands_twice_in_the_files_is_in_one_set_once(folder: Path) -> None:
    whole = TRAIN + TEST - TWICE
    workload = small(folder, points=250, queries=150, holdout=whole - 400)
    sets = [pictures(points) for points in (workload.points(), workload.queries(), workload.holdout())]
    assert sum(map(len, sets)) == len(set().union(*sets)) == whole
    with pytest.raises(ValueError, match=f"at most 399 points, and {whole} together"):
        small(folder, points=250, queries=150, holdout=whole - 399)


def test_queries_and_holdout_are_clean_even_where_they_are_train_images(folder: Path) -> None:
    workload = small(folder, points=100, queries=200, holdout=200, rate=1.0)
    for points in (workload.queries(), workload.holdout()):
        assert points.labels == [id_ % 10 for id_ in points.ids]
    assert min(workload.holdout().ids) < TRAIN


def test_the_split_and_the_errors_depend_on_the_seed_alone(folder: Path) -> None:
    first, again, other = small(folder), small(folder, model="cnn"), small(folder, seed=1)
    assert first.points().ids == again.points().ids
    assert first.queries().ids == again.queries().ids
    assert wrong(first) == wrong(again)
    assert set(first.points().ids) != set(other.points().ids)
    assert set(first.queries().ids) != set(other.queries().ids)


def test_flips_give_exactly_the_rate_of_the_points_another_label(folder: Path) -> None:
    assert len(wrong(small(folder, rate=0.1))) == 30
    assert not wrong(small(folder, rate=0.0))


def test_flips_fall_on_every_other_class_alike() -> None:
    true, rows = torch.arange(50_000) % 10, torch.arange(10_000, 50_000)
    given = flipped(true, rows, 0.9, 10, torch.Generator().manual_seed(0))
    assert given[:10_000].equal(true[:10_000])  # not among the rows
    shares = ((given - true) % 10).bincount()[1:] / 36_000
    assert shares.sum() == 1
    assert (shares - 1 / 9).abs().max() < 5 * (1 / 9 * 8 / 9 / 36_000) ** 0.5  # 5 sigma of a multinomial share


def test_class_dependent_errors_are_the_one_class_that_theirs_is_taken_for(folder: Path) -> None:
    confused = wrong(small(folder, corruption="class_dependent", rate=0.2))
    assert len(confused) == 60
    assert all(given == TAKEN_FOR[true] for true, given in confused.values())
    assert {true for true, _ in confused.values()} == set(range(10))
    assert confused.keys() == wrong(small(folder, rate=0.2)).keys()  # the same points, so that the kinds compare


def test_systematic_errors_are_the_brightest_coats_and_the_darkest_sneakers(folder: Path) -> None:
    workload = small(folder, corruption="systematic", rate=0.1)
    misled, points = wrong(workload), workload.points()
    assert sorted(misled.values()) == [(COAT, PULLOVER)] * 15 + [(SNEAKER, SANDAL)] * 15
    for source, sign in ((COAT, 1), (SNEAKER, -1)):
        rows = [row for row, id_ in enumerate(points.ids) if workload.truth()[id_] == source]
        light = {points.ids[row]: sign * int(points[row][0].sum()) for row in rows}
        assert min(light[id_] for id_ in light if id_ in misled) > max(light[id_] for id_ in light if id_ not in misled)


def test_mixed_errors_are_half_systematic_and_half_flips_of_other_points(folder: Path) -> None:
    systematic = wrong(small(folder, corruption="systematic", rate=0.1))
    mixed = wrong(small(folder, corruption="mixed", rate=0.2))
    assert len(mixed) == 60
    assert systematic.items() <= mixed.items()
    assert len({pair for id_, pair in mixed.items() if id_ not in systematic}) > 10


def test_foreign_points_are_half_as_bright_and_of_another_rule_and_no_other_point_is(folder: Path) -> None:
    workload, clean = (small(folder, corruption=kind, rate=0.2) for kind in ("foreign", "class_dependent"))
    assert wrong(workload) == wrong(clean)
    assert len(wrong(workload)) == 60
    ours, theirs = workload.points(), clean.points()
    for row, id_ in enumerate(ours.ids):
        image = theirs[row][0] // 2 if id_ in wrong(workload) else theirs[row][0]
        assert ours[row][0].equal(image)
    for name in ("queries", "holdout"):
        rows = range(len(getattr(clean, name)()))
        assert all(getattr(workload, name)()[row][0].equal(getattr(clean, name)()[row][0]) for row in rows)


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_a_batch_made_at_once_is_the_collated_one_and_gives_a_loss_for_each_point(folder: Path, kind: Any) -> None:
    workload, rows = small(folder, model=kind), torch.tensor([5, 0, 5, 299])
    batch = Batches(workload.points(), default_collate).take(rows)
    images, labels = default_collate([workload.points()[row] for row in rows.tolist()])
    assert batch[0].equal(images)
    assert batch[1].equal(labels)
    pixels = workload.inputs(batch)
    assert pixels.dtype == torch.float32
    assert 0 <= pixels.min() < 0.01
    assert 0.5 < pixels.max() <= 1
    logits = workload.logits(model := workload.model(), batch)
    assert logits.shape == (4, 10)
    assert workload.loss(model, batch).equal(F.cross_entropy(logits, labels, reduction="none"))


def test_hidden_sets_the_dense_layers_of_either_model(folder: Path) -> None:
    def shapes(**options: Any) -> list[list[int]]:
        return [list(p.shape) for p in small(folder, **options).model().parameters() if p.ndim > 1]

    assert shapes() == [[64, 784], [32, 64], [10, 32]]
    assert shapes(hidden=[16]) == [[16, 784], [10, 16]]
    assert shapes(model="cnn") == [[32, 1, 3, 3], [64, 32, 3, 3], [128, 1600], [10, 128]]
    assert shapes(model="cnn", hidden=[]) == [[32, 1, 3, 3], [64, 32, 3, 3], [10, 1600]]


def test_the_report_shows_the_image_dark_on_white(folder: Path) -> None:
    workload = small(folder)
    points = workload.points()
    png = Image.open(io.BytesIO(workload.describe(points.ids[4])))
    shown = torch.tensor(list(png.convert("L").tobytes())).view(png.height, png.width)
    assert shown[::2, ::2].equal(255 - points[4][0].long().view(28, 28))


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"model": "rnn"}, ("model = 'rnn'", "'mlp' or 'cnn'")),
        ({"corruption": "noise"}, ("corruption = 'noise'", "'systematic', 'mixed', 'foreign'")),
        ({"rate": -0.1}, ("rate = -0.1: give a share from 0 to 1",)),
        ({"queries": 0}, ("queries = 0", "1 or more of each")),
        ({"points": 400}, ("points = 400", "at most 399 points")),
        ({"corruption": "systematic", "rate": 0.5}, ("75 points of one class", "lower the rate")),
        ({"folder": "nowhere"}, ("train-images-idx3-ubyte.gz: no such file", "`make data`", "workload.options.folder")),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    folder: Path, tmp_path: Path, options: dict[str, Any], parts: tuple[str, ...]
) -> None:
    sizes = {"points": 300, "queries": 40, "holdout": 60, "folder": str(folder)}
    with pytest.raises(BadInput) as refused:
        load_workload(load(write_toml(tmp_path, "fashion_mnist", sizes | options)))
    assert "\n" not in str(refused.value)
    for part in parts:
        assert part in str(refused.value)


@pytest.mark.parametrize(
    ("broken", "line"),
    [
        (b"not gzip", "t10k-labels-idx1-ubyte.gz: not a whole gzip file"),
        (packed(bytes(5000))[:-20], "not a whole gzip file"),
        (packed(b"\0\0\x0d\1" + bytes(8)), "not an IDX file of unsigned bytes"),
        (packed(b"\0\0\x08\3\0\0"), "not an IDX file of unsigned bytes"),
        (packed(b"\0\0\x08\1\0\0\0\x05abcd"), r"4 bytes for the shape \[5\]"),
        (packed(b"\0\0\x08\1\0\0\0\0"), r"0 bytes for the shape \[0\]"),
        (packed(b"\0\0\x08\1\0\0\0\2\1\1"), r"labels \[2\] up to 1 are not Fashion-MNIST"),
        (packed(b"\0\0\x08\1\0\0\0\x96" + bytes([11] * TEST)), r"labels \[150\] up to 11 are not Fashion-MNIST"),
    ],
)
def test_a_broken_file_is_told(folder: Path, tmp_path: Path, broken: bytes, line: str) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(broken)
    with pytest.raises(BadInput, match=line):
        small(tmp_path)


@pytest.mark.skipif(
    not (Path(FOLDER) / "train-images-idx3-ubyte.gz").is_file(), reason="Fashion-MNIST is not installed: `make data`"
)
def test_the_real_files_hold_what_the_paper_says() -> None:
    workload = FashionMnist(points=60_000, queries=2_000, holdout=8_000, rate=0.0)
    points = workload.points()
    assert torch.tensor(points.labels).bincount().tolist() == [6_000] * 10
    assert len(pictures(points) | pictures(workload.queries()) | pictures(workload.holdout())) == 70_000
    rows = torch.arange(60_000)
    images, labels = workload.inputs(points.batch_of(rows)), torch.tensor(points.labels)
    means = torch.zeros(10, 784).index_add_(0, labels, images) / 6_000
    queries = workload.queries()
    nearest = torch.cdist(workload.inputs(queries.batch_of(torch.arange(2_000))), means).argmin(1)
    # images and labels run beside each other: the nearest class mean is right for about two thirds (chance: a tenth)
    assert (nearest == torch.tensor(queries.labels)).float().mean() > 0.6


def test_copies_are_exact_with_ids_of_their_own_and_the_labels_of_their_sources(folder: Path) -> None:
    workload = small(folder, copies=0.2, rate=0.3)
    points, true = workload.points(), workload.truth()
    first: dict[bytes, int] = {}
    for row, id_ in enumerate(points.ids):
        if id_ < TRAIN + TEST:
            first[points[row][0].numpy().tobytes()] = row
    copies = [row for row, id_ in enumerate(points.ids) if id_ >= TRAIN + TEST]
    assert len(points) == len(set(points.ids)) == 300
    assert len(copies) == 60
    for row in copies:
        source = first[points[row][0].numpy().tobytes()]
        assert points.labels[row] == points.labels[source]
        assert true[points.ids[row]] == true[points.ids[source]]
    read_sets(workload)


def test_query_errors_leave_the_points_and_the_holdout_as_they_were(folder: Path) -> None:
    clean, dirty = small(folder), small(folder, query_rate=0.25)
    assert sum(a != b for a, b in zip(clean.queries().labels, dirty.queries().labels)) == 10
    assert clean.points().labels == dirty.points().labels
    assert clean.holdout().labels == dirty.holdout().labels
