"""From a configuration and the scores of two cycles to a proposal in the ledger."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from flows.config import load
from flows.errors import BadInput
from flows.policies import RULES, rules_of
from flows.pruning import Proposed, propose, untouchable
from flows.scoring import Scored
from flows.sections.curation import PruningConfig
from flows.stages import Cycle, cycle_folder
from storage import score_store
from storage.ledger import Ledger
from storage.points import Manifest
from storage.policies import Condition
from storage.proposals import Proposal
from storage.score_store import ScoreMetadata, ScoreSet
from tests.flows.helpers import turn, write_toml

POINTS = 40
GONE = (3, 4)


class Silent:
    """A tracker that is told and tells nobody."""

    def tags(self, run: str) -> dict[str, str]:
        return {}

    def version_tags(self, run: str, model: str) -> dict[int, dict[str, str]]:
        return {}

    def set_tag(self, run: str, key: str, value: str) -> None:
        pass


def cycle_of(tmp_path: Path, number: int = 2, **pruning: Any) -> Cycle:
    config = load(write_toml(tmp_path, pruning={"policies": ["harmful"], "budget": 0.5} | pruning))
    text = [str(point) for point in range(POINTS)]
    groups = ["clinic" if point < 10 else None for point in range(POINTS)]
    manifest = Manifest.build(range(POINTS), text, text, [point % 2 for point in range(POINTS)], groups)
    tracker: Any = Silent()
    ledger = Ledger(tmp_path / "l.duckdb")
    for opened in range(1, number + 1):
        ledger.open_cycle(opened, "0" * 64, {}, {}, "int")
        if opened < number:
            ledger.record_event(opened, "promoted")
    return Cycle(config, number, manifest, frozenset(GONE), "0" * 64, {}, ledger, tracker, "", lambda _: None)


def score(cycle: Cycle, number: int, helpful: float) -> ScoreSet:
    """Points 10 to 13 harm; the removed ones are helpful by so many standard errors."""
    points = range(POINTS)
    table = pa.table(
        {
            "point_id": list(points),
            "cycle": pa.array([number] * POINTS, pa.int32()),
            "in_train": [point not in GONE for point in points],
            "loss": [0.0] * POINTS,
            "influence": [helpful if point in GONE else -float(point) for point in points],
            "influence_se": [1.0] * POINTS,
            "self_influence": [1.0] * POINTS,
            "label": pa.array([point % 2 for point in points], pa.int32()),
            "group": ["clinic" if point < 10 else None for point in points],
            "harmful_q": [0.1 if 10 <= point < 14 or point == 5 else 1.0 for point in points],
        }
    )
    folder = cycle_folder(cycle.config, number) / "scores"
    score_store.write_chunk(folder, 0, 0, table, ScoreMetadata(number, "ekfac", ["fc"], None, "c", "i"))
    return score_store.finish(folder, 1)


def proposed(cycle: Cycle, helpful: float = 0.0) -> Proposed:
    scores = score(cycle, cycle.number, helpful)
    return propose(cycle, Scored(scores.folder, scores.sha256, scores.rows, {}, 0.0, "inputs"))


def test_protected_ids_groups_and_the_ids_of_a_file_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("11\n\n 12 \n")
    cycle = cycle_of(tmp_path, 1, protected=[10], protected_file="ids.txt", protected_groups=["clinic"])
    made = proposed(cycle)
    assert Proposal.read(cycle.folder).points == [13]
    assert (made.actions, made.dropped["protected"]) == ({"remove": 1}, 4)
    assert untouchable(cycle) == {*range(10), 10, 11, 12}


@pytest.mark.parametrize(
    ("key", "value", "stay", "budget"),
    [
        ("budget", 0.1, [5, 10], "cycle"),  # 3 of the 38 in training
        ("cumulative_budget", 0.1, [5, 10, 11], "cumulative"),  # 4 of 40, of which 2 are gone
        ("class_budget", 0.1, [5, 10, 11], "per_class"),  # 2 of each 20, of which 1 is gone
        ("group_budget", 0.2, [5], "per_group"),  # 2 of the clinic's 10, which are gone
        ("minimum_kept", 34, [5], "minimum_kept"),  # of 38
        ("class_minimum_kept", 17, [5], "minimum_per_class"),  # of 19 each
        ("protected", [13], [13], "protected"),
        ("protected_file", "ids.txt", [12], "protected"),
        ("protected_groups", ["clinic"], [5], "protected"),
    ],
)
def test_each_key_bounds_a_proposal_by_its_own_budget(
    tmp_path: Path, key: str, value: Any, stay: list[int], budget: str
) -> None:
    (tmp_path / "ids.txt").write_text("12")
    proposed(cycle_of(tmp_path / "without", 1))
    assert Proposal.read(tmp_path / "without/ws/cycles/000001").points == [5, 10, 11, 12, 13]
    bound = cycle_of(tmp_path, 1, **{key: value})
    made = proposed(bound)
    assert Proposal.read(bound.folder).points == sorted({5, 10, 11, 12, 13} - {*stay})
    assert {name: count for name, count in made.dropped.items() if count} == {budget: len(stay)}


@pytest.mark.parametrize("text", ["7\nseven\n", None])
def test_a_file_of_ids_that_cannot_be_read_is_one_line(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "ids.txt").write_text(text)
    with pytest.raises(BadInput, match=r"pruning\.protected_file: .*ids\.txt.*one a line"):
        proposed(cycle_of(tmp_path, 1, protected_file="ids.txt"))


def test_removed_points_that_are_missed_twice_running_are_proposed_for_return(tmp_path: Path) -> None:
    cycle = cycle_of(tmp_path)
    score(cycle, 1, helpful=3.5)
    made = proposed(cycle, helpful=3.5)
    assert made.actions == {"remove": 5, "restore": 2}
    rows = {row["point_id"]: row for row in Proposal.read(cycle.folder).rows.to_pylist()}
    assert {rows[point]["reason"] for point in GONE} == {"regret"}
    open_proposal = cycle.ledger.proposal(2)
    assert open_proposal is not None
    assert (open_proposal.hash, open_proposal.size) == (made.hash, 7)


def test_a_cycle_before_without_scores_is_said_where_points_could_have_come_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert proposed(cycle_of(tmp_path), helpful=9.0).actions == {"remove": 5}
    assert "cycle 1 left no finished scores: no point is proposed for return" in caplog.text


@pytest.mark.parametrize(("before", "now", "z"), [(2.9, 9.0, 3.0), (9.0, 2.9, 3.0), (3.5, 3.5, 4.0)])
def test_points_missed_once_or_less_than_asked_stay_away(tmp_path: Path, before: float, now: float, z: float) -> None:
    cycle = cycle_of(tmp_path, z_restore=z)
    score(cycle, 1, helpful=before)
    assert proposed(cycle, helpful=now).actions == {"remove": 5}


def test_the_proposal_is_made_again_where_the_cycle_before_or_the_protected_file_changed(tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("11")
    cycle = cycle_of(tmp_path, protected_file="ids.txt")
    first = proposed(cycle, helpful=3.5)
    assert first.actions == {"remove": 4}
    score(cycle, 1, helpful=3.5)
    assert proposed(cycle, helpful=3.5).actions == {"remove": 4, "restore": 2}
    (tmp_path / "ids.txt").write_text("11\n12")
    assert proposed(cycle, helpful=3.5).actions == {"remove": 3, "restore": 2}


def test_a_relabelled_point_is_counted_under_the_label_that_the_data_set_gives_it(tmp_path: Path) -> None:
    cycle = cycle_of(tmp_path, 1, class_budget=0.1)  # two of each label, of which one was removed
    proposed(cycle)
    assert Proposal.read(cycle.folder).points == [12, 13]
    shutil.rmtree(cycle.folder / "stages")
    proposed(replace(cycle, relabeled={30: 1}))
    assert Proposal.read(cycle.folder).points == [13]


def test_every_policy_of_the_configuration_is_a_rule_over_a_column_of_its_own() -> None:
    pruning = PruningConfig(
        policies=tuple(RULES), agreement=0.75, mislabeled_action="relabel", redundant_share=0.3, balanced_share=0.6
    )
    rules = {rule.policy: rule for rule in rules_of(pruning)}
    assert {name: rule.column for name, rule in rules.items()} == {
        "harmful": "harmful_q",
        "mislabeled": "mislabeled_q",
        "memorized": "memorized_q",
        "redundant": "redundancy",
        "balanced": "balance",
    }
    assert rules["harmful"].also == rules["memorized"].also == (Condition("agreement", ">=", 0.75),)
    assert (rules["mislabeled"].also, rules["mislabeled"].relabel) == ((), "suggested_label")
    assert (rules["redundant"].threshold, rules["redundant"].turn) == (0.3, 1)
    assert (rules["balanced"].threshold, rules["balanced"].rank_column, rules["balanced"].turn) == (0.6, "balance", 2)
    assert {name for name, rule in rules.items() if rule.repeats == "copy_of"} == {"redundant"}
    assert all(rule.relabel is None for name, rule in rules.items() if name != "mislabeled")


@pytest.mark.slow
def test_a_cycle_proposes_the_copies_and_names_what_they_repeat(here: Path) -> None:
    copied = f"{Path(__file__).with_name('copied_blobs.py')}:Copied"
    training = {"epochs": 4, "checkpoints": [1.0]}
    file = write_toml(here, copied, training=training, scoring={"probe": 0}, pruning={"policies": ["redundant"]})
    summary = turn(file)
    folder = here / "ws/cycles/000001"
    ids = score_store.read(folder / "scores", [])["point_id"].to_pylist()
    reasons = {row["point_id"]: row["reason"] for row in Proposal.read(folder).rows.to_pylist()}
    assert {point: reasons[point] for point in ids[-10:]} == {
        copy: f"redundant: copy of {original}" for copy, original in zip(ids[-10:], ids[:10], strict=True)
    }
    assert not set(ids[:10]) & set(reasons)
    assert f"an exact copy of point {ids[0]}, which stays" in summary.report.read_text()
    limits = {check.name: check.limit for check in summary.checks}
    margin = load(file).guardrail.redundant_tolerance
    assert limits["challenger - baseline"] == limits["challenger - control"] == margin, "held to be no worse alone"
