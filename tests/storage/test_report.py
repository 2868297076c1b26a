"""The report stands alone, says what was asked, and shows data as text."""

import json
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from storage.errors import StorageError
from storage.figures import FATES, arm_comparison, quadrant, score_histogram, slice_sums
from storage.report import ReportData, render
from storage.report_parts import Confusion, Tally
from storage.report_rows import COLUMNS, embedded, script_json
from tests.storage.report_example import ARMS, example, proposed

EVIL = "</td></script><script>alert(1)</script><!--<img src=x onerror=alert(2)>\"'&\u2028"
PNG = b"\x89PNG\r\n\x1a\n"


class Tags(HTMLParser):
    """Collects every tag with its attributes, all text, and the points that the script is given."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = self.json = ""
        self._points = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._points = dict(attrs).get("id") == "data"

    def handle_data(self, data: str) -> None:
        if self._points:
            self.json += data
        else:
            self.text += data


@pytest.mark.parametrize("strings", [False, True])
def test_markup_in_the_data_is_text_in_the_report(strings: bool) -> None:
    plain = Tags(render(example(3, strings=strings)))
    evil = Tags(render(example(3, said=EVIL, strings=strings)))
    assert [tag for tag, _ in evil.tags] == [tag for tag, _ in plain.tags], "data add no tag"
    assert [set(attrs) for _, attrs in evil.tags] == [set(attrs) for _, attrs in plain.tags], "data add no attribute"
    # title, heading, decision, four lists of facts, policy, arm, check, class, group, slice, labels, figure, query
    assert evil.text.count(EVIL) >= 17


def test_the_points_stand_in_the_page_as_they_are() -> None:
    text = Tags(render(example(3, said=EVIL, strings=True))).json
    assert not set("<>&\u2028") & set(text), "nothing can end the element"
    found = json.loads(text)
    columns = {column["name"]: column for column in found["columns"]}
    points = proposed(3, EVIL, strings=True)
    assert columns["point_id"]["values"] == points["point_id"].to_pylist()
    for name in ("action", "reason", "label"):
        words = [columns[name]["words"][code] for code in columns[name]["values"]]
        assert words == [str(value) for value in points[name].to_pylist()]
    assert columns["influence"]["values"] == [
        None if value is None else float(f"{value:.4g}") for value in points["influence"].to_pylist()
    ]
    assert found["details"][0]["text"] == EVIL
    assert found["details"][0]["tokens"] == [[EVIL, -0.02], ["fine", 0.0101], ["and", 0.0]]
    assert found["details"][0]["rest"] == 0.003
    assert "tokens" not in found["details"][1]
    assert found["queries"][0]["id"] == f"{EVIL} 0"


def test_ids_of_64_bits_keep_every_digit() -> None:
    data = example(2)
    ids = [2**63 - 1, -(2**63)]
    data = replace(data, points=data.points.set_column(0, "point_id", pa.array(ids)))
    assert json.loads(Tags(render(data)).json)["columns"][0]["values"] == [str(point) for point in ids]


def test_a_number_that_is_none_is_refused_in_the_page() -> None:
    with pytest.raises(ValueError, match="JSON"):
        script_json([float("nan")])


def test_the_report_loads_and_sends_nothing_and_runs_its_own_script_alone() -> None:
    tags = Tags(render(example(3))).tags
    sources = [attrs.get("src") or attrs.get("href") or "" for _, attrs in tags]
    assert all(source == "" or source.startswith("data:image/png;base64,") for source in sources)
    (policy,) = [attrs["content"] for _, attrs in tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert policy.count("'sha256-") == 2, "one style and one script"


def test_the_report_says_how_to_approve_what_was_decided_and_in_which_unit() -> None:
    text = Tags(render(example(3))).text
    said = (
        "tamis approve bbbbbbbbbbbb --by NAME",
        "approve:bbbbbbbbbbbb",
        "positive = helpful",
        "in nats",
        "[0.89, 0.94]",
    )
    for one in said:
        assert one in text
    assert "does not hold" in text
    assert "upper bound" not in text, "a bound of a check may be a lower one"


def test_the_report_counts_every_action_and_says_when_details_are_for_the_first_points_alone() -> None:
    data = example(700, detailed=10)
    assert (data.proposed, data.actions) == (700, {"remove": 560, "relabel": 140})
    assert "for the first 10 of 700 points" in render(data)
    assert "for the first" not in render(example(5))


def test_slices_show_their_sum_with_its_interval_and_which_are_a_pattern() -> None:
    text = "".join(Tags(render(example(3))).text.split())
    assert "asample120-1.2[-1.5,-0.9]-0.010.0004✓6050.0%4.20" in text
    assert "label31000.2[-0.1,0.5]0.002100.0%0.00" in text
    assert "all14slices" in text


def test_an_action_that_is_not_proposed_has_no_column() -> None:
    html = render(example(10))
    assert "to relabel" in html
    assert "to restore" not in html


def with_column(points: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return points.set_column(points.schema.get_field_index(name), name, values)


def test_the_points_have_a_column_of_groups_where_any_is_of_one_and_none_elsewhere() -> None:
    def columns(points: pa.Table) -> dict[str, Any]:
        return {one["name"]: one for one in json.loads(embedded(points, [], {}))["columns"]}

    assert "group" not in columns(proposed(3))
    group = columns(with_column(proposed(3), "group", pa.array([None, "scan", "scan"])))["group"]
    assert [group["words"][place] for place in group["values"]] == ["", "scan", "scan"]


def test_the_given_label_stands_beside_the_one_in_force_where_any_point_was_relabelled_earlier() -> None:
    def labels(points: pa.Table) -> dict[str, list[str]]:
        columns = {one["name"]: one for one in json.loads(embedded(points, [], {}))["columns"]}
        kept = {name: columns[name] for name in ("label", "given") if name in columns}
        return {name: [one["words"][place] for place in one["values"]] for name, one in kept.items()}

    never = with_column(proposed(3), "label", pa.array([7, 7, 3], pa.int32()))
    assert labels(never) == {"label": ["7", "7", "3"]}
    earlier = with_column(never, "given", pa.array([None, 4, None], pa.int32()))
    assert labels(earlier) == {"label": ["7", "7", "3"], "given": ["", "4", ""]}


def test_an_empty_proposal_has_a_report_too() -> None:
    empty = pa.table({column.name: pa.array([], pa.string()) for column in COLUMNS})
    html = render(ReportData(1, "digits", "d" * 64, "b" * 64, "nothing_to_do", "No point was harmful.", 100, empty))
    assert "Doing nothing is an answer" in html
    assert "<script" not in html


def test_the_share_to_go_is_of_the_points_in_training() -> None:
    assert Tally("3", 200, 10, 5, 7).share == 0.075
    assert Tally("3", 0, 0, 0, 7).share == 0.0, "all of the class were removed earlier"


def test_labels_are_set_against_each_other_the_most_frequent_first_and_the_rest_counted() -> None:
    assert Confusion.of({}) is None
    found = Confusion.of({("10", "2"): 5, ("2", "10"): 4, ("3", "2"): 1}, most=2)
    assert found == Confusion(["2", "10"], ["2", "10"], [[0, 4], [5, 0]], left_out=1)


def test_figures_are_png_and_the_same_twice_whatever_the_numbers() -> None:
    values = {fate: np.array([-1.0, 0.0, 2.0, np.nan]) for fate in FATES}
    pairs = {fate: (one, np.abs(one)) for fate, one in values.items()}
    nothing = {fate: np.empty(0) for fate in FATES}
    for make in (
        lambda: score_histogram(values, {"cut": 1.0}, "influence (nats)"),
        lambda: score_histogram(nothing, {}, "influence (nats)"),
        lambda: quadrant(pairs),
        lambda: quadrant({fate: (one, one) for fate, one in nothing.items()}),
        lambda: quadrant({"stays": (np.zeros(3), np.zeros(3))}),
        lambda: arm_comparison(ARMS),
        lambda: slice_sums([replace(one, name=EVIL + "$x^") for one in example(3).slices]),
    ):
        first, again = make(), make()
        assert first.startswith(PNG)
        assert first == again
    with pytest.raises(StorageError, match="no arms"):
        arm_comparison([])
