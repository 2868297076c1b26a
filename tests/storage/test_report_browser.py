"""The report in a headless Chromium, from disk and in MLflow's UI: it sorts, filters, pages and asks for nothing.

Needs Chromium, which `make browser` installs; `.ci/run` does.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from storage.report import render
from storage.tracking import Tracker
from tests.services import HERE, Service, answers, free_ports, running
from tests.storage.browser import Browser, Page, browser, installed
from tests.storage.mlflow_page import report_frame
from tests.storage.report_example import example, proposed

EVIL = (
    "</td></script><script>document.title = 'broken'</script><img src=//example.invalid/x onerror=alert(2)>\"'&\u2028"
)
ROWS = "#points tbody tr"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(installed() is None, reason="no Chromium: `make browser` installs it; the report is NOT tested"),
]


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture(scope="module", params=["ui", pytest.param("server", marks=pytest.mark.service)])
def mlflow(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Tracker]]:
    """MLflow's pages, of a workspace as `tamis ui` opens them or of a team's server, and who writes what they show."""
    folder = tmp_path_factory.mktemp("a workspace")
    if request.param == "server":
        server = f"http://{HERE}:{request.getfixturevalue('mlflow_server').port}"
        yield server, Tracker(folder, "digits", server)
        return
    tracker, (port,) = Tracker(folder, "digits"), free_ports(1)
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", tracker.uri]
    command += ["--host", HERE, "--port", str(port), "--workers", "1"]
    up = lambda: answers(f"http://{HERE}:{port}/health")  # noqa: E731
    with running(Service("mlflow-ui", command, folder, port, up, {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"})):
        yield f"http://{HERE}:{port}", tracker


def shown(chromium: Browser, folder: Path, count: int, **how: bool | str | int) -> Page:
    file = folder / "report.html"
    file.write_text(render(example(count, **how)), encoding="utf-8")  # type: ignore[arg-type]
    return chromium.open(file.as_uri())


def titles(page: Page) -> list[str]:
    return [text.split("\n")[0].strip() for text in page.texts("#points th")]


def column(page: Page, title: str) -> list[str]:
    """What a column of the page of points says, by its heading."""
    return page.texts(f"{ROWS} td:nth-child({titles(page).index(title) + 1})")


def head(page: Page, title: str) -> str:
    return f"#points th:nth-child({titles(page).index(title) + 1}) button"


def quiet(page: Page) -> bool:
    """Nothing was asked for but the page itself, and nothing complained."""
    return len(page.requests()) == 1 and page.complaints() == []


def test_points_are_sorted_by_a_click_and_by_the_keyboard_and_what_is_missing_is_last(
    chromium: Browser, tmp_path: Path
) -> None:
    page = shown(chromium, tmp_path, 60)
    assert len(page.texts(ROWS)) == 50
    influence = head(page, "influence")
    page.click(influence)
    rising = [float(text.split()[0]) for text in column(page, "influence")]
    assert rising == sorted(rising)
    assert page.evaluate(f"document.querySelector('{influence}').parentElement.ariaSort") == "ascending"
    page.evaluate(f"document.querySelector('{influence}').focus()")
    page.press("Enter")
    falling = [float(text.split()[0]) for text in column(page, "influence")]
    assert falling == sorted(falling, reverse=True)
    assert falling[0] > rising[0]
    page.click("#last")
    assert column(page, "influence")[-1] == "", "the point without a number is last both ways"
    page.click(head(page, "point"))
    ids = [int(text.split()[-1]) for text in column(page, "point")]
    assert ids == sorted(ids), "integers by value"
    assert quiet(page)


def test_points_are_filtered_by_text_class_reason_and_action_together(chromium: Browser, tmp_path: Path) -> None:
    page, points = shown(chromium, tmp_path, 1000), proposed(1000).to_pylist()
    page.choose("select[name=action]", "relabel")
    assert set(column(page, "action")) == {"relabel"}
    page.choose("select[name=label]", "3")
    page.choose("select[name=reason]", "harmful")
    wanted = {str(p["point_id"]) for p in points if (p["action"], p["label"], p["reason"]) == ("relabel", 3, "harmful")}
    assert wanted
    assert {text.split()[-1] for text in column(page, "point")} == wanted
    page.click("button[type=reset]")
    page.evaluate("new Promise(done => setTimeout(done, 50))")
    assert page.texts("#status") == ["of 20; 1,000 of 1,000 points"]
    page.type("#search", str(points[7]["point_id"]))
    assert str(points[7]["point_id"]) in {text.split()[-1] for text in column(page, "point")}
    page.type("#search", " no such thing")
    assert page.texts(ROWS) == []
    assert page.texts("#status") == ["of 1; 0 of 1,000 points"]
    assert quiet(page)


def test_points_of_groups_are_sorted_filtered_and_found_by_them_and_without_groups_there_is_no_such_column(
    chromium: Browser, tmp_path: Path
) -> None:
    page, points = shown(chromium, tmp_path, 1000, grouped=True), proposed(1000, grouped=True).to_pylist()
    page.click(head(page, "group"))
    assert set(column(page, "group")) == {"9 dpi"}, "numbers by value, 9 before 10"
    page.click("#last")
    assert set(column(page, "group")) == {""}
    page.click(head(page, "group"))
    assert set(column(page, "group")) == {"paper"}
    page.click("#last")
    assert set(column(page, "group")) == {""}, "points of no group are last both ways"
    page.choose("select[name=group]", "10 dpi")
    assert page.texts("#status") == ["of 5; 250 of 1,000 points"]
    page.choose("select[name=label]", "3")
    wanted = {str(point["point_id"]) for point in points if (point["group"], point["label"]) == ("10 dpi", 3)}
    assert 0 < len(wanted) <= 50
    assert {text.split()[-1] for text in column(page, "point")} == wanted
    page.click("button[type=reset]")
    page.evaluate("new Promise(done => setTimeout(done, 50))")
    page.choose("select[name=group]", "none")
    assert page.texts("#status") == ["of 5; 250 of 1,000 points"]
    page.click("button[type=reset]")
    page.evaluate("new Promise(done => setTimeout(done, 50))")
    page.type("#search", "PAPER")
    assert set(column(page, "group")) == {"paper"}
    assert page.texts("#status") == ["of 5; 250 of 1,000 points"]
    assert quiet(page)
    bare = shown(chromium, tmp_path, 1000)
    assert "group" not in titles(bare)
    assert bare.evaluate("[...document.querySelectorAll('#filters select')].map(one => one.name)") == [
        "action",
        "reason",
        "label",
    ]
    assert quiet(bare)


def test_details_open_and_close_by_the_keyboard_and_show_the_queries_with_pictures(
    chromium: Browser, tmp_path: Path
) -> None:
    page = shown(chromium, tmp_path, 20, detailed=5)
    page.evaluate(f"document.querySelector('{ROWS} button').focus()")
    page.press("Enter")
    (detail,) = page.texts("tr.detail")
    assert "threshold 0.2" in detail
    assert page.evaluate("document.querySelectorAll('tr.detail img').length") == 10, "five of each sign"
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    page.press("Enter")
    assert page.texts("tr.detail") == []
    assert len(page.texts(f"{ROWS} button")) == 5, "the others have none"
    assert quiet(page)


def test_words_are_coloured_by_the_sign_and_size_of_their_influence(chromium: Browser, tmp_path: Path) -> None:
    page = shown(chromium, tmp_path, 20, said=EVIL, strings=True)
    page.click(f"{ROWS} button")
    words = page.texts(".tokens span")
    assert words[0].replace("\u2028", "") == EVIL.replace("\u2028", ""), "markup stays text"
    assert words[1:] == ["fine", "and"]
    assert page.evaluate("[...document.querySelectorAll('.tokens span')].map(word => word.className)") == [
        "harms level-4",
        "helps level-2",
        "",
    ]
    assert page.evaluate("getComputedStyle(document.querySelector('.tokens .harms')).backgroundColor") == (
        "rgba(213, 94, 0, 0.55)"
    )
    assert "0.00300 nats" in page.texts("tr.detail p")[0]
    assert page.evaluate("document.title") != "broken"
    assert quiet(page)


def test_100_000_points_are_paged_sorted_and_searched(chromium: Browser, tmp_path: Path) -> None:
    page, points = shown(chromium, tmp_path, 100_000, grouped=True), proposed(100_000)
    assert page.texts("#status") == ["of 2,000; 100,000 of 100,000 points"]
    assert len(page.texts(ROWS)) == 50
    page.click("#last")
    assert page.evaluate("document.querySelector('#page').value") == "2000"
    last = [str(point) for point in points["point_id"].to_pylist()[-50:]]
    assert [text.split()[-1] for text in column(page, "point")] == last
    page.click(head(page, "self-influence"))
    lowest = sorted(value for value in points["self_influence"].to_pylist() if value is not None)[0]
    assert float(column(page, "self-influence")[0]) == pytest.approx(lowest, rel=1e-3)  # four digits are shown
    page.type("#search", "799")
    found = [point for point in points["point_id"].to_pylist() if "799" in str(point)]
    assert f"{len(found):,} of 100,000" in page.texts("#status")[0]
    assert (tmp_path / "report.html").stat().st_size < 15e6
    assert quiet(page)


def test_markup_in_the_data_stays_text(chromium: Browser, tmp_path: Path) -> None:
    page = shown(chromium, tmp_path, 20, said=EVIL, strings=True)
    page.click(f"{ROWS} button")
    assert page.evaluate("document.title") != "broken"
    assert page.evaluate("document.querySelectorAll('script').length") == 2
    assert EVIL.replace("\u2028", "") in page.texts(".decision")[0].replace("\u2028", "")
    assert page.texts("tr.detail li")[1].replace("\u2028", "") == EVIL.replace("\u2028", "")
    assert quiet(page)


def test_a_script_that_is_not_the_reports_own_does_not_run(chromium: Browser, tmp_path: Path) -> None:
    html = render(example(20)).replace("<h1>", "<script>document.title = 'broken'</script><h1>")
    (tmp_path / "report.html").write_text(html, encoding="utf-8")
    page = chromium.open((tmp_path / "report.html").as_uri())
    assert page.evaluate("document.title") != "broken"
    assert len(page.texts(ROWS)) == 20, "its own does"


def test_the_report_fills_itself_pages_and_filters_in_mlflows_artifact_viewer(
    chromium: Browser, mlflow: tuple[str, Tracker], tmp_path: Path
) -> None:
    server, tracker = mlflow
    run = tracker.cycle_run(1, "a cycle", {})
    tracker.log_report(run, render(example(1000, grouped=True)))
    experiment = MlflowClient(tracker.uri).get_run(run).info.experiment_id
    url = f"{server}/#/experiments/{experiment}/runs/{run}/artifactPath/review/00_report.html"
    page = chromium.open(url, width=1600, height=1200)
    frame = report_frame(page)
    assert frame.evaluate("self.origin") == "null", "the frame is of nobody's origin"
    assert frame.texts("#status") == ["of 20; 1,000 of 1,000 points"]
    frame.click("#next")
    assert frame.evaluate("document.querySelector('#page').value") == "2"
    frame.choose("select[name=group]", "10 dpi")
    assert frame.texts("#status") == ["of 5; 250 of 1,000 points"]
    assert set(column(frame, "group")) == {"10 dpi"}
    frame.evaluate("document.querySelector('#filters').scrollIntoView()")
    page.screenshot(tmp_path / "viewer.png")
    assert frame.requests() == []
    assert frame.complaints() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_both_schemes(chromium: Browser, tmp_path: Path, scheme: str) -> None:
    (tmp_path / "report.html").write_text(render(example(20)), encoding="utf-8")
    page = chromium.open((tmp_path / "report.html").as_uri(), scheme=scheme)
    contrasts = page.evaluate(CONTRASTS)
    assert contrasts
    assert min(contrasts.values()) >= 4.5, contrasts  # WCAG 2.1, level AA


CONTRASTS = """(() => {
  const light = color => color.match(/[\\d.]+/g).slice(0, 3).map(c => c / 255)
    .map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = e => { const c = getComputedStyle(e).backgroundColor;
    return c.startsWith("rgba(0, 0, 0, 0") && e.parentElement ? behind(e.parentElement) : c; };
  const found = {};
  for (const name of ["body", ".quiet", ".badge", ".decision", ".tiles b.remove", ".tiles b.relabel", ".passed",
    ".failed", "dt", "#points td.remove", "#points small", "th small", "label"]) {
    const element = document.querySelector(name);
    const [a, b] = [light(getComputedStyle(element).color), light(behind(element))].sort((x, y) => y - x);
    found[name] = (a + 0.05) / (b + 0.05);
  }
  return found;
})()"""


@pytest.mark.parametrize("width", [1280, 480])
def test_the_page_is_never_wider_than_the_window(chromium: Browser, tmp_path: Path, width: int) -> None:
    (tmp_path / "report.html").write_text(render(example(20, said="long " * 30 + "x" * 300)), encoding="utf-8")
    page = chromium.open((tmp_path / "report.html").as_uri(), width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
