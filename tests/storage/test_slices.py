"""Sums over slices are those that plain Python adds up, whatever a slice is of."""

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from storage.score_store import write_chunk
from storage.slices import FEWEST, MOST, Sums, sum_slices
from tests.storage.score_tables import METADATA

N = 400
INFLUENCE = np.random.default_rng(0).normal(size=N)
LABELS = np.arange(N) % 3


def scores(folder: Path, **more: Any) -> Path:
    """Points 0 to 399, the last five of them removed earlier."""
    columns = {
        "point_id": range(N),
        "cycle": [1] * N,
        "in_train": [point < N - 5 for point in range(N)],
        "influence": INFLUENCE,
        "label": pa.array(LABELS, pa.int32()),
        **{name: [0.0] * N for name in ("loss", "influence_se", "self_influence")},
    }
    for chunk, start in enumerate(range(0, N, 150)):
        write_chunk(folder, 0, chunk, pa.table(columns | more).slice(start, 150), METADATA)
    return folder


def slices(folder: Path, facet: str, values: Any, proposed: tuple[int, ...] = ()) -> dict[str | None, Sums]:
    """The slices of one facet by what they are named after."""
    facets = pa.table({"point_id": range(N), facet: values})
    return {one.low: one for one in sum_slices(folder, facets, proposed).slices if one.facet == facet}


def agree(one: Sums, inside: Callable[[int], bool]) -> None:
    """Assert that a slice holds exactly the points in training of which `inside` is true."""
    held = INFLUENCE[[point for point in range(N - 5) if inside(point)]]
    assert one.points == len(held)
    assert one.total == pytest.approx(held.sum(), abs=1e-9)
    assert one.variance == pytest.approx(held.var(ddof=1), rel=1e-9)


def test_points_in_training_alone_are_summed_and_the_proposed_among_them_counted(tmp_path: Path) -> None:
    facets = pa.table({"point_id": range(N)})
    found = sum_slices(scores(tmp_path), facets, [0, 3, 4, N - 1])
    agree(found.whole, lambda _: True)
    assert found.whole.chosen == 3, "the last point is out of training"
    labels = {one.low: one for one in found.slices}
    assert list(labels) == ["0", "1", "2"]
    agree(labels["1"], lambda point: LABELS[point] == 1)
    assert [one.chosen for one in labels.values()] == [2, 1, 0]


def test_texts_and_truth_values_are_slices_by_value_and_what_is_missing_is_one(tmp_path: Path) -> None:
    sources = [None if point % 4 == 0 else "web" if point % 4 == 1 else "mail" for point in range(N)]
    found = slices(scores(tmp_path), "source", sources)
    assert set(found) == {None, "web", "mail"}
    agree(found[None], lambda point: point % 4 == 0)
    agree(found["mail"], lambda point: point % 4 > 1)
    truth = slices(tmp_path, "checked", [point < 100 for point in range(N)])
    agree(truth["true"], lambda point: point < 100)


def test_numbers_and_times_are_cut_at_fifths_and_equal_ones_stay_together(tmp_path: Path) -> None:
    folder = scores(tmp_path)
    found = list(slices(folder, "length", list(range(N))).values())
    assert (found[0].low, found[0].high, found[0].points) == ("0", "78", 79)
    assert sum(one.points for one in found) == N - 5
    agree(found[1], lambda point: 79 <= point < 158)
    skewed = slices(folder, "links", [float(point % 10 == 0) for point in range(N)])
    assert {one.low: one.high for one in skewed.values()} == {"0": "0", "1": "1"}
    agree(skewed["1"], lambda point: point % 10 == 0)
    times = [datetime(2026, 1, 1) + timedelta(hours=point) for point in range(N)]
    assert "2026-01-01 00:00:00" in slices(folder, "when", times)


def test_a_point_is_in_the_slice_of_every_word_that_it_holds_once(tmp_path: Path) -> None:
    words = [["all", "third", "third"] if point % 3 == 0 else ["all", "other"] for point in range(N)]
    found = slices(scores(tmp_path), "words", words)
    assert set(found) == {"third", "other"}, "what all points have is no slice"
    agree(found["third"], lambda point: point % 3 == 0)


def test_of_many_words_those_that_lean_towards_a_label_are_slices(tmp_path: Path) -> None:
    draws = np.random.default_rng(1)
    common = [[f"common {word}" for word in range(80) if draws.random() < 0.4] for _ in range(N)]
    words = [
        some + ["of two"] * int(label == 2 and point % 5 == 0)
        for point, (some, label) in enumerate(zip(common, LABELS))
    ]
    found = slices(scores(tmp_path), "words", words)
    assert len(found) == MOST
    assert "of two" in found, "26 points, all of one label; each common word is in about 160"


def test_slices_are_of_enough_points_and_leave_out_enough(tmp_path: Path) -> None:
    few = ["rare" if point < FEWEST - 1 else "enough" if point < 2 * FEWEST - 1 else "most" for point in range(N)]
    assert set(slices(scores(tmp_path), "source", few)) == {"enough", "most"}
    assert slices(tmp_path, "source", ["rare" if point < FEWEST - 1 else "most" for point in range(N)]) == {}
    many = [f"source {point % 20}" if point % 2 else f"half {point % 140}" for point in range(N)]
    assert len(slices(tmp_path, "source", many)) <= MOST


def test_copies_are_counted_with_the_original_among_them(tmp_path: Path) -> None:
    folder = scores(tmp_path, copy_of=pa.array([point - 20 if 20 <= point < 40 else None for point in range(N)]))
    found = {
        one.low: one for one in sum_slices(folder, pa.table({"point_id": range(N)}), ()).slices if one.facet == "copies"
    }
    assert set(found) == {"0", "1"}
    agree(found["1"], lambda point: point < 40)


def test_a_facet_may_be_called_like_a_score_or_like_another_in_capitals_or_hold_quotes(tmp_path: Path) -> None:
    values = ["a" if point % 2 else "b" for point in range(N)]
    names = ("influence", "Influence", "in_train", "x\"; DROP TABLE base; --'")
    found = sum_slices(scores(tmp_path), pa.table({"point_id": range(N), **dict.fromkeys(names, values)}), ())
    for name in names:
        agree(next(one for one in found.slices if (one.facet, one.low) == (name, "a")), lambda point: point % 2 == 1)


def test_values_are_given_back_as_they_are_whatever_they_hold(tmp_path: Path) -> None:
    hostile = [
        "'; DROP TABLE base; --",
        "nul\0byte",
        "line\nbreak",
        "NULL",
        "$most {0} %s",
        "\u202eleft",
        "",
        "x" * 5000,
    ]
    values = [hostile[point % len(hostile)] for point in range(N)]
    assert set(slices(scores(tmp_path), "source", values)) == set(hostile)
    assert set(slices(tmp_path, "words", [[value] for value in values])) == set(hostile)
