"""A planted pattern is the first slice and marked, chance is not; facets that cannot be used are refused in a line."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from flows.check import check
from flows.config import load
from flows.errors import BadInput
from flows.facets import facets_of
from flows.slices import patterns, ranked
from storage.slices import Sliced, Sums
from tests.flows.helpers import turn, write_toml

FACETED = f"{Path(__file__).with_name('faceted_blobs.py')}:FacetedBlobs"
Draw = Callable[[np.random.Generator, int], Any]
CHANCE: dict[str, Draw] = {
    "normal": lambda draws, count: draws.normal(size=count),
    "a few harm greatly": lambda draws, count: -draws.lognormal(0, 2, count),
    "a few help greatly": lambda draws, count: draws.lognormal(0, 2, count) - 20,
}


def sums(facet: str, name: str, influence: Any, chosen: int = 0) -> Sums:
    return Sums(facet, name, None, len(influence), influence.sum(), influence.var(ddof=1), chosen)


def cut(influence: Any, facets: dict[str, Any]) -> Sliced:
    """The slices of facets by value."""
    found = [
        sums(facet, str(value), influence[values == value]) for facet, values in facets.items() for value in set(values)
    ]
    return Sliced(sums("", "", influence), tuple(one for one in found if one.points >= 10))


@pytest.mark.parametrize("draw", CHANCE)
def test_where_there_is_no_pattern_one_is_marked_in_at_most_one_report_of_twenty(draw: str) -> None:
    marked = 0
    for seed in range(100):
        draws = np.random.default_rng(seed)
        influence = CHANCE[draw](draws, 1500)
        facets = {"label": draws.integers(0, 10, 1500), "source": draws.integers(0, 60, 1500)}
        marked += any(one.pattern for one in ranked(cut(influence, facets)))
    assert marked <= 10  # of 5 expected at most, 10 or more would be seen in 3 of 100 runs


def test_a_source_that_harms_throughout_is_the_first_slice_and_a_pattern() -> None:
    draws = np.random.default_rng(0)
    source = draws.integers(0, 8, 1500)
    influence = draws.standard_t(3, 1500) - 1.5 * (source == 3)
    first, *others = ranked(cut(influence, {"label": draws.integers(0, 10, 1500), "source": source}))
    assert (first.facet, first.name, first.pattern) == ("source", "3", True)
    assert not any(one.pattern for one in others if one.facet == "source")
    assert first.total.low < first.total.mean < first.total.high < 0
    assert [one.total.mean for one in others] == sorted(one.total.mean for one in others)


def test_a_single_point_makes_no_pattern_however_much_it_harms() -> None:
    influence = np.random.default_rng(0).normal(size=1000)
    influence[7] = -1000.0
    found = ranked(cut(influence, {"source": np.arange(1000) % 20}))
    assert found[0].name == "7"
    assert found[0].total.mean < -900
    assert not any(one.pattern for one in found)
    assert found[0].total.high > 0


def test_the_interval_holds_what_as_many_points_like_these_add_up_to() -> None:
    held = 0
    for seed in range(300):
        draws = np.random.default_rng(seed)
        influence = np.concatenate([draws.normal(-0.3, 1, 40), draws.normal(size=960)])
        one = ranked(cut(influence, {"source": np.arange(1000) >= 40}))[0]
        held += one.total.low <= -0.3 * 40 <= one.total.high
    assert held / 300 == pytest.approx(0.95, abs=0.035)  # the error of 300 draws is .013


def test_lift_is_the_share_of_the_proposal_over_the_share_of_the_points() -> None:
    influence = np.random.default_rng(0).normal(size=100)
    slices = sums("source", "a", influence[:20], 12), sums("source", "b", influence[20:], 4)
    found = {one.name: one for one in ranked(Sliced(sums("", "", influence, 16), slices))}
    assert (found["a"].share, found["a"].lift) == (0.75, pytest.approx(3.75))
    nothing = ranked(Sliced(sums("", "", influence), (sums("source", "a", influence[:20]),)))
    assert (nothing[0].share, nothing[0].lift) == (0.0, 0.0)


def test_points_of_one_influence_are_no_pattern_nor_is_a_line_of_them_written() -> None:
    found = ranked(cut(-np.ones(100), {"source": np.arange(100) % 2}))
    assert [one.p for one in found] == [1.0, 1.0]
    assert patterns(found) == ()


def workload(**facets: Any) -> Any:
    return SimpleNamespace(points=lambda: SimpleNamespace(ids=np.arange(4)), facets=lambda: facets)


def test_facets_are_texts_numbers_times_truth_values_and_sets_of_texts() -> None:
    late = datetime(2026, 3, 1, 12, tzinfo=UTC)
    given: dict[str, Any] = {
        "source": ["web", None, "mail", "web"],
        "length": np.arange(4),
        "score": [1, 2.5, None, 3],
        "when": [late, None, late, late],
        "checked": [True, False, None, True],
        "words": [{"a"}, frozenset(), ["a", "b"], ()],
        "nothing": [None] * 4,
    }
    table = facets_of(workload(**given))
    assert table["point_id"].to_pylist() == [0, 1, 2, 3]
    assert table["when"].to_pylist()[0] == datetime(2026, 3, 1, 12)
    assert table["words"].to_pylist() == [["a"], [], ["a", "b"], []]
    assert facets_of(SimpleNamespace(points=workload().points)).column_names == ["point_id"]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("facets", "said"),
    [
        ({"source": ["web"] * 3}, "has 3 values for 4 train points"),
        ({"label": [1] * 4}, "give a text other than label, group, copies"),
        ({"source": ["web", 3, "mail", "web"]}, "values of several kinds"),
        ({"length": [1.0, float("nan"), 2.0, 3.0]}, "[1] is nan: give a finite number"),
        ({"source": [{"a": 1}] * 4}, "holds struct"),
        ({"source": ["\ud800"] * 4}, "values of several kinds"),
        ({"\ud800": [1] * 4}, "half a surrogate pair"),
        ({"length": None}, "is a NoneType: give a list"),
        ({"length": 4}, "is a int: give a list"),
        ({"length": (n for n in range(4))}, "is a generator: give a list"),
        ({"length": np.array(4)}, "is a ndarray: give a list"),
        ({"source": "webs"}, "is a str: give a list"),
        ({"length": torch.ones(4, 2)}, "[0] is no value"),
        ({"when": [None, *[datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=2)))] * 3]}, "[1] is no value"),
        ({"when": [np.datetime64("-0005-01-01")] * 4}, "beyond the years 1 to 9999"),
    ],
)
def test_facets_that_cannot_be_used_are_refused_in_a_line(facets: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput) as refused:
        facets_of(workload(**facets))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("given", [None, [1, 2, 3, 4]])
def test_facets_without_names_are_refused(given: Any) -> None:
    nameless = workload()
    nameless.facets = lambda: given
    with pytest.raises(BadInput, match=f"gives a {type(given).__name__}"):
        facets_of(nameless)


def test_times_of_numpy_and_pandas_are_times_and_none_where_there_is_no_time() -> None:
    pandas = pytest.importorskip("pandas")
    noon = datetime(2026, 3, 1, 12)
    numpy = np.array([noon, "NaT", noon, noon], dtype="datetime64[ns]")
    zoned = [pandas.Timestamp(noon, tz="UTC"), pandas.NaT, *[pandas.Timestamp(noon)] * 2]
    table = facets_of(workload(numpy=numpy, pandas=zoned))
    assert table["numpy"].to_pylist() == table["pandas"].to_pylist() == [noon, None, noon, noon]


def test_a_check_refuses_them_before_anything_is_trained(tmp_path: Path) -> None:
    file = write_toml(tmp_path, FACETED, {"fault": "short"})
    [wrong] = [one for one in check(load(file)) if not one.ok and one.name == "sets"]
    assert "119 values for 120 train points" in wrong.text


@pytest.mark.slow
def test_a_cycle_names_the_source_whose_labels_are_all_wrong(tmp_path: Path) -> None:
    summary = turn(write_toml(tmp_path, FACETED), dry_run=True)
    assert summary.patterns
    assert summary.patterns[0].startswith("source scraped: 12 points, -")
    assert "Where the harm is" in (html := summary.report.read_text())
    assert "scraped" in html
