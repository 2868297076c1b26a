"""`tamis ledger why`: what is said of a point, by the rules that were in force."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.config import load
from flows.evidence import account_of
from flows.ledger_tables import print_account
from flows.limits import budgets_of
from flows.policies import rules_of
from flows.protection import protected_ids
from flows.recorded import recorded
from flows.restoration import Choice, restore
from flows.stages import cycle_folder
from flows.stores import ledger_of
from storage import drop_store
from storage.errors import UnknownPoint
from storage.files import sha256_file
from storage.policies import policy_json
from storage.proposals import Proposal
from storage.selection import select
from tests.flows.helpers import write_toml
from tests.flows.ledger_cases import INFLUENCE, N, manifest, said, settings, three_cycles, write_scores


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return three_cycles(tmp_path)


def test_why_explains_removed_relabelled_restored_kept_and_unknown_points(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    restore(file, Choice(points=("1",)), "bob", "was right")
    expected = {
        "0": ("point 0 is removed", "no longer has it", "by ada: harmful, score -0.5, threshold 0.2, estimator ekfac",
              "(if it were added)", "harms most the queries q0 (-0.5)", "helps most the queries h0 (0.5)"),
        "1": ("point 1 was restored", "restore at", "by bob: was right"),
        "3": ("another label", "named it to relabel as 1", "relabel as 1 at", "rank 1 of 5, most harmful first"),
        "4": ("nothing was ever done to it", "rank 2 of 5", "policy harmful chooses it: harmful_q 0.4,",
              "chosen if <= 0.45", "chosen by a rule and not proposed: protected", "q4 (-0.5)"),
        "7": ("nothing was ever done to it", "policy harmful does not choose it: harmful_q 0.7", "rank 5 of 5"),
    }  # fmt: skip
    for point, parts in expected.items():
        print_account(account_of(file, point), as_json=False)
        text = said(capsys)
        for part in parts:
            assert part in text, f"{point}: {part!r} is not in {text!r}"
    print_account(account_of(file, "4"), as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert (told["status"], told["scores"]["rank"], told["scores"]["harmed"]) == ("kept", 2, [["q4", -0.5]])
    for unknown in ("99", "x"):
        with pytest.raises(UnknownPoint, match=f"{unknown}.* unknown"):
            account_of(file, unknown)


def test_why_says_which_further_condition_kept_a_rule_from_choosing_a_point(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = one_cycle(tmp_path, agreement=0.8)
    expected = {
        "1": "policy harmful chooses it: harmful_q 0.1, chosen if <= 0.45 chosen by a rule and not proposed: cycle 1",
        "2": "does not choose it: harmful_q 0.2, chosen if <= 0.45; agreement 0.5, chosen if >= 0.8 helps",
        "3": "does not choose it: harmful_q 0.3, chosen if <= 0.45; agreement none, chosen if >= 0.8 helps",
    }
    for point, part in expected.items():
        print_account(account_of(file, point), as_json=False)
        assert part in said(capsys)


def test_why_names_the_trainings_that_dropped_a_point_as_the_ledger_knows_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = one_cycle(tmp_path)
    for model, listed in (("baseline-seed0-ab", True), ("control-seed0-cd", False)):
        folder = cycle_folder(load(file), 1) / "checkpoints" / model
        folder.mkdir(parents=True)
        values = {"point_id": [2, 5], "step": [10, 10], "epoch": [4, 4], "influence": [-0.5, -0.25]}
        drop_store.write(folder, pa.table(values | {"influence_se": [0.1, 0.1]}))
        sha256 = sha256_file(folder / drop_store.DROPPED) if listed else "of another file"
        ledger_of(load(file)).record_event(1, "dropped", detail={"points": sha256}, key=model)
    print_account(account_of(file, "5"), as_json=False)
    text = said(capsys)
    assert "training baseline-seed0-ab went on without it after epoch 4, for itself alone: influence -0.25 ±" in text
    assert "training control-seed0-cd" not in text
    assert account_of(file, "3").drops == ()


def test_why_says_that_it_cannot_tell_where_the_list_of_drops_on_record_is_gone_or_altered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = one_cycle(tmp_path)
    folder = cycle_folder(load(file), 1) / "checkpoints" / "baseline-seed0-ab"
    folder.mkdir(parents=True)
    values = {"point_id": [2], "step": [10], "epoch": [4], "influence": [-0.5], "influence_se": [0.1]}
    drop_store.write(folder, pa.table(values))
    whole = {"dropped": 1, "points": sha256_file(folder / drop_store.DROPPED)}
    ledger_of(load(file)).record_event(1, "dropped", detail=whole, key=folder.name)
    ledger_of(load(file)).record_event(1, "dropped", detail=whole | {"dropped": 0}, key="challenger-seed0-ef")
    assert account_of(file, "5").drops_unknown == ()
    drop_store.write(folder, pa.table(values | {"point_id": [3]}))
    assert account_of(file, "2").drops_unknown == ((1, folder.name),)
    (folder / drop_store.DROPPED).unlink()
    print_account(account_of(file, "2"), as_json=False)
    assert "nobody can tell: gone or altered is the list of baseline-seed0-ab of cycle 1" in said(capsys)


def test_why_says_what_a_point_is_a_copy_of_and_that_it_stays_while_that_is_proposed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = one_cycle(tmp_path, policies=["harmful", "redundant"], harmful_q=0.05, budget=1.0, class_budget=0.3)
    scores = cycle_folder(load(file), 1) / "scores" / "part-r000-c00000.parquet"
    shares = pa.array([None if point < 2 else 0.01 for point in range(N)])
    table = pq.read_table(scores).append_column("redundancy", shares)
    repeated = pa.array([{2: 0, 5: 1}.get(point) for point in range(N)], pa.int64())
    pq.write_table(table.append_column("copy_of", repeated), scores)
    proposes(file)
    held = {
        "2": "point 0, which it is a copy of, was chosen by another rule",
        "5": "the budget pruning.class_budget = 0.3 had no room left for it",
    }
    for point, held_back in held.items():
        print_account(account_of(file, point), as_json=False)
        text = said(capsys)
        assert f"an exact copy of point {int(point) // 4}, which is in training" in text
        assert f"chosen by a rule and not proposed: {held_back}" in text


def test_why_knows_points_protected_by_a_file_or_a_group(tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("1\n")
    file = one_cycle(tmp_path, protected_file="ids.txt", protected_groups=["clinic"], budget=0.25)
    proposes(file)
    assert held_back(file) == {
        0: "protected",
        1: f"protected: {tmp_path / 'ids.txt'} names it",
        2: "",
        3: "",
        4: "the budget pruning.budget = 0.25 had no room left for it",
    }


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("budget", 0.25, {2: "pruning.budget = 0.25"}),
        ("cumulative_budget", 0.25, {2: "pruning.cumulative_budget = 0.25"}),
        ("class_budget", 0.25, {2: "pruning.class_budget = 0.25"}),
        ("group_budget", 0.3, {0: "pruning.group_budget = 0.3", 3: "pruning.group_budget = 0.3"}),
        ("minimum_kept", 6, {2: "pruning.minimum_kept = 6"}),
        ("class_minimum_kept", 3, {2: "pruning.class_minimum_kept = 3"}),
    ],
)
def test_why_names_the_budget_that_held_a_point_back(
    tmp_path: Path, key: str, value: float, named: dict[int, str]
) -> None:
    file = one_cycle(tmp_path, **({"budget": 1.0, "cumulative_budget": 1.0, "class_budget": 1.0} | {key: value}))
    proposes(file)
    told = held_back(file)
    for point, budget in named.items():
        assert told[point] == f"the budget {budget} had no room left for it"
    assert told[1] == ""


def test_why_says_that_it_cannot_name_the_budget_where_the_proposal_does_not_come_out_again(tmp_path: Path) -> None:
    file = one_cycle(tmp_path, budget=0.25)
    proposes(file)
    [part] = (cycle_folder(load(file), 1) / "scores").glob("*.parquet")
    table = pq.read_table(part)
    at = table.column_names.index("harmful_q")
    pq.write_table(table.set_column(at, "harmful_q", pa.array([0.9, *[0.1] * (N - 1)])), part)
    assert held_back(file)[4].startswith("why, cannot be told: ")
    (cycle_folder(load(file), 1) / "manifest.parquet").unlink()
    assert "cannot read the manifest" in held_back(file)[4]


def test_why_judges_by_the_rules_on_record_for_the_cycle_whatever_the_file_says_since(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = one_cycle(tmp_path, harmful_q=0.25, cooldown=1)
    proposes(file)
    write_toml(tmp_path, pruning={"policies": ["memorized"], "harmful_q": 0.9, "protected": [2], "budget": 0.5})
    print_account(account_of(file, "4"), as_json=False)
    assert "policy harmful does not choose it: harmful_q 0.4, chosen if <= 0.25" in said(capsys)
    assert held_back(file)[2] == "the budget pruning.budget = 0.15 had no room left for it"


def test_why_judges_by_the_proposal_that_was_made_after_the_file_was_edited_while_the_cycle_was_open(
    tmp_path: Path,
) -> None:
    one_cycle(tmp_path, harmful_q=0.25)
    file = write_toml(tmp_path, pruning={"policies": ["harmful"], "harmful_q": 0.45, "budget": 0.25})
    proposes(file)
    write_toml(tmp_path)
    scores = account_of(file, "4").scores
    assert scores is not None
    assert [verdict.threshold for verdict in scores.verdicts] == [0.45]
    assert held_back(file)[3] == "the budget pruning.budget = 0.25 had no room left for it"


def test_why_knows_the_rate_of_a_cycle_from_before_harmful_had_one_of_its_own(tmp_path: Path) -> None:
    file = one_cycle(tmp_path, record={"policies": ["harmful"], "q": 0.35, "budget": 0.25})
    scores = account_of(file, "4").scores
    assert scores is not None
    assert [(verdict.threshold, verdict.chosen) for verdict in scores.verdicts] == [(0.35, False)]


def test_a_rate_that_policies_shared_stands_for_each_that_had_none_of_its_own(tmp_path: Path) -> None:
    file = one_cycle(tmp_path, record={"policies": ["harmful"], "q": 0.35, "harmful_q": 0.3})
    judged = recorded(ledger_of(load(file)), 1)
    assert judged is not None
    rates = judged.pruning
    assert (rates.harmful_q, rates.mislabeled_q, rates.memorized_q) == (0.3, 0.35, 0.35)


@pytest.mark.parametrize("record", [{}, {"q": 0.2, "policies": ["harmful"], "a_key_of_another_version": 1}])
def test_why_gives_no_verdict_where_the_rules_of_the_cycle_are_not_on_record(
    tmp_path: Path, record: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    print_account(account_of(one_cycle(tmp_path, record=record), "1"), as_json=False)
    text = said(capsys)
    assert "by which rules cycle 1 judged it, the ledger does not tell" in text
    assert "policy" not in text


def held_back(file: Path) -> dict[int, str]:
    """Of the points that harmful chooses at .45."""
    told = {point: account_of(file, str(point)).scores for point in range(5)}
    return {point: scores.held_back for point, scores in told.items() if scores is not None}


def proposes(file: Path) -> None:
    """The first cycle proposes by what its TOML says now."""
    config = load(file)
    protected = protected_ids(config.pruning, "int")
    rules = rules_of(config.pruning)
    budgets = budgets_of(config.pruning, config.proposable, protected, frozenset(), {})
    selection = select(cycle_folder(config, 1) / "scores", rules, budgets)
    made = Proposal.build(1, selection, "d", "s", policy_json(rules, budgets))
    made.write(cycle_folder(config, 1))
    ledger_of(config).add_proposal(made)


def one_cycle(folder: Path, record: dict[str, Any] | None = None, **pruning: Any) -> Path:
    """A cycle that has scored and proposed nothing yet; point 0 is of the group `clinic`.

    The ledger has its settings, or `record` in place of those of pruning.
    """
    path = write_toml(folder, pruning={"policies": ["harmful"], "harmful_q": 0.45} | pruning)
    config = load(path)
    ledger_of(config).path.parent.mkdir()
    opened = settings(path) if record is None else settings(path) | {"pruning": record}
    ledger_of(config).open_cycle(1, "d", opened, {}, "int")
    scores = cycle_folder(config, 1) / "scores"
    write_scores(scores, INFLUENCE, removed=set())
    [part] = scores.glob("*.parquet")
    table = pq.read_table(part).append_column("agreement", pa.array([1.0, 1.0, 0.5, None, *[1.0] * (N - 4)]))
    table = table.append_column("label", pa.array([point % 2 for point in range(N)], pa.int32()))
    pq.write_table(table.append_column("group", pa.array(["clinic", *["other"] * (N - 1)])), part)
    manifest(range(N)).write(cycle_folder(config, 1) / "manifest.parquet")
    return path
