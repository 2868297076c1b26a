"""What a cycle gives its report: known points in known classes, known queries, and no more pictures than fit."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows import publication, report_changes, report_points
from flows.config import load
from flows.preview import Preview
from flows.report_points import UNTOLD, Samples, details, proposed_points, suspicious
from flows.stores import ledger_of
from flows.summary import Summary
from storage.points import Manifest
from storage.proposals import Proposal
from storage.query_scores import write_queries
from storage.report import ReportData, render
from storage.report_parts import Pull
from storage.score_store import ScoreMetadata, write_chunk
from tests.flows.helpers import turn, write_toml

METADATA = ScoreMetadata(1, "ekfac", ["head"], 0.1, "checkpoint", "inputs")
TOP = pa.list_(pa.struct([("query_id", pa.string()), ("influence", pa.float64())]))


class Gallery:
    """Queries 1 to 30 with names that are also those of points, and something to show of each."""

    def queries(self) -> Any:
        return SimpleNamespace(ids=list(range(1, 31)), labels=[number % 3 for number in range(1, 31)])

    def describe(self, point_id: int) -> str:
        return f"point {point_id} " + "x" * 2000

    def describe_query(self, query_id: int) -> bytes:
        return b"a picture" * 100


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    """Points 1 to 40; each harms query 1 and one other, and helps query 30."""
    ids = list(range(1, 41))
    tops = [[(30, 0.5), (2 + point % 20, -0.1), (1, -0.3)] for point in ids]
    columns: dict[str, Any] = {
        "point_id": ids,
        "cycle": [1] * 40,
        "in_train": [True] * 40,
        "predicted": [0] * 40,
        "memorization": ["memorize"] * 40,
        "top_queries": pa.array(
            [[{"query_id": str(query), "influence": value} for query, value in top] for top in tops], TOP
        ),
    }
    numbers = ("loss", "influence", "influence_se", "self_influence", "suspicion")
    write_chunk(tmp_path, 0, 0, pa.table(columns | {name: [0.5] * 40 for name in numbers}), METADATA)
    return tmp_path


def points(*ids: int) -> pa.Table:
    evidence = [[{"policy": "harmful", "column": "harmful_q", "value": 0.1954, "threshold": 0.2}]] * len(ids)
    unknown = {"repeated": [None] * len(ids), "given": [None] * len(ids)}
    return pa.table({"point_id": list(ids), "evidence": evidence, **unknown})


def test_a_copy_and_a_point_relabelled_earlier_carry_what_is_behind_them(tmp_path: Path) -> None:
    ids, numbers = [1, 2, 3], ("influence", "influence_se", "self_influence", "posterior", "loss")
    columns = {"point_id": ids, "cycle": [1] * 3, "in_train": [True] * 3, **{name: [0.5] * 3 for name in numbers}}
    write_chunk(tmp_path, 0, 0, pa.table(columns | {"label": [7, 7, 7], "suggested_label": [7, 7, 3]}), METADATA)
    reasons = ["redundant: copy of 0", "mislabeled", "mislabeled"]
    rows = pa.table({"point_id": ids, "reason": reasons, "rank": ids, "evidence": [[]] * 3})
    known = Manifest.build(range(5), ["-"] * 5, ["-"] * 5).table
    found = proposed_points(tmp_path, Proposal(1, rows, "", "", {}), {3: 4}, known)
    assert found["reason"].to_pylist() == ["redundant", "mislabeled", "mislabeled"]
    more = {"predicted": 7, "loss": 0.5, "memorization": "neutral", "suspicion": None}
    said = [list(report_points._evidence(row, more)) for row in found.to_pylist()]
    assert said[0][0] == "an exact copy of point 0, which stays"
    assert len(said[1]) == 1
    assert said[2][0] == "given as 4; relabelled earlier, and 7 is in force"


@pytest.mark.parametrize("kind", [int, str])
def test_a_proposed_point_carries_its_group_in_the_order_of_its_rank(tmp_path: Path, kind: type) -> None:
    ids, numbers = list(map(kind, [1, 2, 3])), ("influence", "influence_se", "self_influence", "posterior", "loss")
    columns = {"point_id": ids, "cycle": [1] * 3, "in_train": [True] * 3, **{name: [0.5] * 3 for name in numbers}}
    write_chunk(tmp_path, 0, 0, pa.table(columns | {"label": [7] * 3, "suggested_label": [7] * 3}), METADATA)
    rows = pa.table({"point_id": ids, "reason": ["harmful"] * 3, "rank": [3, 1, 2], "evidence": [[]] * 3})
    everyone = list(map(kind, range(5)))
    known = Manifest.build(everyone, ["-"] * 5, ["-"] * 5, groups=["zero", "one", "two", None, "four"]).table
    found = proposed_points(tmp_path, Proposal(1, rows, "", "", {}), {}, known)
    assert found["point_id"].to_pylist() == [ids[1], ids[2], ids[0]]
    assert found["group"].to_pylist() == ["two", None, "one"]


def test_removed_points_that_would_help_now_are_counted_by_cycle_of_removal_and_those_that_come_back(
    tmp_path: Path,
) -> None:
    def action(point: int, cycle: int, what: str = "remove") -> Any:
        return SimpleNamespace(point_id=str(point), cycle=cycle, action=what, reason="harmful")

    columns: dict[str, Any] = {"point_id": [1, 2, 3, 4, 5, 6], "in_train": [False] * 5 + [True]}
    numbers: dict[str, Any] = {
        "influence": [0.3, 0.4, 0.5, 0.1, 0.9, 0.9],
        "influence_se": [0.1, 0.1, 0.1, 0.1, 0.0, 0.1],
    }
    numbers |= {"loss": [0.5] * 6, "self_influence": [0.5] * 6}
    write_chunk(tmp_path, 0, 0, pa.table({**columns, "cycle": [3] * 6, **numbers}), METADATA)
    actions = [action(1, 1), action(2, 2), action(3, 2), action(4, 1), action(5, 1), action(6, 1, "restore")]
    proposal = Proposal(3, pa.table({"point_id": [3, 6], "action": ["restore", "remove"]}), "", "", {})
    (said,) = report_changes.helpful_now(actions, "int", proposal, tmp_path).values()
    assert said.startswith("3 of 5 points (1 removed in cycle 1, 2 removed in cycle 2), 1 of them proposed for return")
    assert report_changes.helpful_now(actions[3:], "int", proposal, tmp_path) == {}


def test_details_are_of_the_first_points_with_their_evidence_and_queries(scores: Path) -> None:
    shown, queries = details(scores, points(7, 3), Samples.of(Gallery()))  # type: ignore[arg-type]
    first = shown[0]
    assert first.sample.text == ("point 7 " + "x" * 2000)[:1000] + "…"
    assert list(first.pulls) == [Pull("30", 0.5), Pull("9", -0.1), Pull("1", -0.3)]
    assert first.evidence[0] == "harmful: harmful_q is 0.1954, threshold 0.2"
    assert set(queries) == {"30", "9", "5", "1"}
    assert (queries["9"].label, queries["9"].sample.png) == ("0", b"a picture" * 100)


def test_points_whose_words_the_preview_could_no_longer_weigh_say_so(scores: Path, tmp_path: Path) -> None:
    class Worded(Gallery):
        def tokens(self, point_id: int) -> list[str]:
            return ["point", str(point_id)]

    told = tmp_path / "positions.parquet"
    pq.write_table(pa.table({"point_id": [7], "positions": [[0.25, 0.5]], "rest": [0.1]}), told)
    cases = (
        (Worded(), Preview("", told, None, told), [False, True]),
        (Worded(), Preview("", told), [True, True]),  # the first proposal was empty, and with it the preview
        (Worded(), Preview("compressed"), [False, False]),  # no words of any point
        (Gallery(), Preview("", told), [False, False]),
    )
    for workload, preview, lacking in cases:
        shown, _ = details(scores, points(7, 3), Samples.of(workload, preview))  # type: ignore[arg-type]
        assert [UNTOLD in one.evidence for one in shown] == lacking


def test_pictures_and_texts_end_before_the_report_is_too_large(scores: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_points, "SAMPLE_BYTES", 7_000)  # point 1: a text of 1,001 and three queries of 900
    shown, queries = details(scores, points(*range(1, 41)), Samples.of(Gallery()))  # type: ignore[arg-type]
    assert len(shown) == 2, "point 2 takes a text and one query more, and so would point 3"
    assert set(queries) == {"30", "1", "3", "4"}, "those of the points that are shown"


def test_a_query_is_not_shown_by_the_picture_of_a_point_of_its_name() -> None:
    class Plain(Gallery):
        describe_query = None

    shown = Samples.of(Plain()).query("7")  # type: ignore[arg-type]
    assert (shown.label, shown.sample.text, shown.sample.png) == ("1", "", None)


def test_the_queries_of_largest_loss_are_shown_with_the_proposed_points_that_harm_them(scores: Path) -> None:
    proposal: Any = SimpleNamespace(points=[2, 3, 22])
    gallery: Any = Gallery()
    assert suspicious(scores, proposal, Samples.of(gallery)) == [], "scores of an earlier version"
    losses = [float(number % 29) for number in range(1, 31)]
    ids = [str(number) for number in range(1, 31)]
    known = {"label": [number % 3 for number in range(1, 31)], "predicted": [2] * 30, "loss": losses}
    write_queries(scores, {"query_id": ids, **known})
    found = suspicious(scores, proposal, Samples.of(gallery))
    assert [query.query_id for query in found][:3] == ["28", "27", "26"]
    assert len(found) == 20
    every = {query.query_id: query.harmed_by for query in found}
    assert set(every.values()) == {0}
    write_queries(scores, {"query_id": ids, **known, "loss": losses[::-1]})
    every = {query.query_id: query.harmed_by for query in suspicious(scores, proposal, Samples.of(gallery))}
    assert {name: count for name, count in every.items() if count} == {"4": 2, "5": 1}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Summary, ReportData]]:
    """Two cycles on the blobs, and what their reports were given."""
    given = list[ReportData]()

    def remember(data: ReportData) -> str:
        given.append(data)
        return render(data)

    file = write_toml(tmp_path_factory.mktemp("cycles"), guardrail={"group_tolerance": 0.5})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publication, "render", remember)
        first = turn(file)
        second = turn(file, dry_run=True)
    assert ledger_of(load(file)).state(1) == "promoted"
    return list(zip([first, second], given, strict=True))


@pytest.mark.slow
def test_classes_are_counted_over_the_points_in_training(told: list[tuple[Summary, ReportData]]) -> None:
    for summary, data in told:
        assert sum(tally.given for tally in data.classes) == summary.in_train
        counted = {tally.name: tally.remove for tally in data.classes if tally.remove}
        assert counted == Counter(str(label) for label in data.points["label"].to_pylist())
        assert data.groups == [], "the blobs have none"


@pytest.mark.slow
def test_every_proposed_point_is_in_the_report_with_the_policies_that_named_it(
    told: list[tuple[Summary, ReportData]],
) -> None:
    summary, data = told[0]
    assert data.proposed == len(data.details) == summary.proposed > 0
    assert data.points["rank"].to_pylist() == sorted(data.points["rank"].to_pylist())
    names = [name for policies in data.points["policies"].to_pylist() for name in policies]
    assert {policy.name: policy.proposed for policy in data.policies} == {
        name: names.count(name) for name in summary.candidates
    }
    assert all(policy.meaning for policy in data.policies)
    assert {policy.name: policy.parameters for policy in data.policies} == {
        "harmful": "q = 0.2",
        "mislabeled": "q = 0.2",
    }
    assert len(data.suspicious) == 20
    assert set(data.queries) <= {str(number) for number in range(10_000, 10_060)}


@pytest.mark.slow
def test_a_later_cycle_says_what_changed_since_the_last(told: list[tuple[Summary, ReportData]]) -> None:
    (first, one), (second, two) = told
    assert one.changes == {}
    new = {"proposed for the first time": f"{second.proposed} points"} if second.proposed else {}
    assert two.changes == {"removed in cycle 1": f"{first.removed} points"} | new
    assert (one.tag, two.tag) == ("", "")
