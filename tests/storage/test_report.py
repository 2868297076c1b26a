"""The report stands alone, says what was asked, and shows data as text."""

from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from storage.errors import StorageError
from storage.figures import arm_comparison, score_histogram
from storage.report import Arm, Check, Interval, ReportData, ReportPoint, render

EVIL = "</td><script>alert(1)</script><img src=x onerror=alert(2)>\"'"
ARM = Arm("challenger", 85, 50, 3, Interval(0.4, 0.38, 0.45), Interval(0.93, 0.91, 0.94))
PNG = b"\x89PNG\r\n\x1a\n"


class Tags(HTMLParser):
    """Collects every tag with its attributes, and all text outside script and style."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def data(text: str = "a sample") -> ReportData:
    point = ReportPoint(text, text, -1.0, 0.0, text, text, -0.1, 0.2, None, text, text, PNG)
    return ReportData(
        cycle=4,
        dataset=text,
        dataset_sha256="d" * 64,
        proposal="b" * 64,
        state="awaiting_review",
        decision=text,
        proposed=1,
        summary={text: text},
        arms=[Arm(text, 85, 50, 3, ARM.loss, None), ARM],
        checks=[Check(text, -0.01, 0.0, True), Check("control", 0.3, 0.0, False)],
        points=[point],
        commands=[f"tamis approve {'b' * 12} --by NAME"],
        figures={text: PNG},
    )


def test_markup_in_the_data_is_text_in_the_report() -> None:
    plain, evil = Tags(render(data())), Tags(render(data(EVIL)))
    assert [tag for tag, _ in evil.tags] == [tag for tag, _ in plain.tags], "data add no tag"
    assert [set(attrs) for _, attrs in evil.tags] == [set(attrs) for _, attrs in plain.tags], "data add no attribute"
    # title, decision, one fact, one arm, one check, one caption and seven cells of the point show it as it is
    assert evil.text.count(EVIL) >= 10


def test_the_report_loads_and_sends_nothing() -> None:
    tags = Tags(render(data())).tags
    sources = [attrs.get("src") or attrs.get("href") or "" for _, attrs in tags]
    assert all(source == "" or source.startswith("data:image/png;base64,") for source in sources)
    (policy,) = [attrs["content"] for _, attrs in tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert "default-src 'none'" in policy


def test_the_report_says_how_to_approve_what_was_decided_and_in_which_unit() -> None:
    text = Tags(render(data())).text
    for said in ("tamis approve bbbbbbbbbbbb --by NAME", "positive = helpful", "in nats", "0.93", "[0.91, 0.94]"):
        assert said in text
    assert "does not hold" in text
    assert "upper bound" not in text, "a bound of a check may be a lower one"


def test_the_heading_counts_every_proposed_point_and_says_when_it_shows_fewer() -> None:
    assert "Proposed for removal: 1 points<" in render(data())
    assert "Proposed for removal: 700 points, showing the first 1<" in render(replace(data(), proposed=700))


def test_an_empty_proposal_has_a_report_too() -> None:
    html = render(ReportData(1, "digits", "d" * 64, "b" * 64, "nothing_to_do", "No point was harmful.", 0, {}))
    assert "Doing nothing is an answer" in html
    assert "<script>" not in html


def test_figures_are_png_and_the_same_twice() -> None:
    values = np.array([-1.0, 0.0, 2.0, np.nan])
    cuts = {f"policy {i}": float(i) for i in range(6)}
    for make in (lambda: score_histogram(values, cuts, "influence (nats)"), lambda: arm_comparison([ARM, ARM])):
        first, again = make(), make()
        assert first.startswith(PNG)
        assert first == again
    with pytest.raises(StorageError, match="no arms"):
        arm_comparison([])
