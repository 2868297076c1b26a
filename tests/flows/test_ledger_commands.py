"""`tamis ledger` on a workspace of three cycles that nobody had to train."""

import json
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.comparison import difference, regrets
from flows.config import load
from flows.errors import BadInput
from flows.evidence import account_of
from flows.ledger_tables import print_account, print_difference, print_regrets, print_verification
from flows.limits import budgets_of
from flows.policies import rules_of
from flows.protection import protected_ids
from flows.ranks.shards import TOP_QUERIES
from flows.restoration import Choice, restore
from flows.stages import cycle_folder
from flows.stores import ledger_of
from storage import drop_store
from storage.errors import CycleConflict, NotRemoved, UnknownPoint
from storage.files import sha256_file
from storage.points import Manifest
from storage.policies import policy_json
from storage.proposals import Proposal
from storage.selection import select
from tests.flows.helpers import tamis, write_toml

N = 8
INFLUENCE = [-4.0, -3.0, -2.0, -1.0, 1.0, 2.0, 3.0, 4.0]


def manifest(ids: range, content: str = "c") -> Manifest:
    return Manifest.build(ids, [f"{content}{i}" for i in ids], [f"i{i}" for i in ids], [i % 2 for i in ids])


def write_scores(folder: Path, influence: list[float], removed: set[int]) -> None:
    """Point i harms query q<i> most and helps query h<i>; the q-value of its harm is i/10."""
    tops = [[{"query_id": f"h{i}", "influence": 0.5}, {"query_id": f"q{i}", "influence": -0.5}] for i in range(N)]
    table = pa.table(
        {
            "point_id": list(range(N)),
            "in_train": [i not in removed for i in range(N)],
            "influence": influence,
            "influence_se": [1.0] * N,
            "harmful_q": [i / 10 for i in range(N)],
            "top_queries": pa.array(tops, TOP_QUERIES),
        }
    )
    folder.mkdir(parents=True)
    pq.write_table(table, folder / "part-r000-c00000.parquet")
    (folder / "MANIFEST.json").write_text("{}")


def proposed(cycle: int, points: list[int], action: str, new_label: int | None = None) -> Proposal:
    count = len(points)
    rows = {
        "point_id": points,
        "action": [action] * count,
        "new_label": pa.array([new_label] * count, pa.int32()),
        "reason": ["harmful"] * count,
        "score": [-0.5] * count,
        "threshold": [0.2] * count,
    }
    return Proposal(cycle, pa.table(rows), "d", "s", {"cycle": cycle})


def settings(file: Path) -> dict[str, Any]:
    return load(file).model_dump(mode="json", by_alias=True)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Cycle 1 removes 0, 1 and 2; cycle 2 relabels 3; cycle 3 is open, without 2 in its data, and has scored."""
    path = write_toml(tmp_path, pruning={"policies": ["harmful"], "protected": [4], "harmful_q": 0.45})
    config = load(path)
    ledger = ledger_of(config)
    ledger.path.parent.mkdir()
    for cycle, points, action in ((1, [0, 1, 2], "remove"), (2, [3], "relabel")):
        ledger.open_cycle(cycle, "d", settings(path), {}, "int")
        made = proposed(cycle, points, action, 1 if action == "relabel" else None)
        ledger.add_proposal(made)
        ledger.add_review(made.hash, "approve", "ada", "cli")
        ledger.apply_proposal(cycle, made.hash, manifest(range(N)), "ekfac", "k" * 64)
        ledger.record_event(cycle, "promoted")
        folder = cycle_folder(config, cycle)
        write_scores(folder / "scores", INFLUENCE, removed={0, 1, 2} if cycle == 2 else set())
        manifest(range(N)).write(folder / "manifest.parquet")
    ledger.open_cycle(3, "d", settings(path), {}, "int")
    folder = cycle_folder(config, 3)
    write_scores(folder / "scores", [0.5, 3.0, 2.0, *INFLUENCE[3:]], removed={0, 1, 2})
    manifest(range(3, N)).write(folder / "manifest.parquet")
    return path


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


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
    for model, recorded in (("baseline-seed0-ab", True), ("control-seed0-cd", False)):
        folder = cycle_folder(load(file), 1) / "checkpoints" / model
        folder.mkdir(parents=True)
        values = {"point_id": [2, 5], "step": [10, 10], "epoch": [4, 4], "influence": [-0.5, -0.25]}
        drop_store.write(folder, pa.table(values | {"influence_se": [0.1, 0.1]}))
        sha256 = sha256_file(folder / drop_store.DROPPED) if recorded else "of another file"
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


def test_a_point_whose_content_changed_since_it_was_removed_is_said_to_be_a_new_one(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest(range(N), content="new").write(cycle_folder(load(file), 3) / "manifest.parquet")
    print_account(account_of(file, "0"), as_json=False)
    assert "other content under this id now: a new point" in said(capsys)


def test_restore_takes_what_ids_files_classes_cycles_and_queries_have_in_common(file: Path, tmp_path: Path) -> None:
    lines, table, comma = tmp_path / "ids.txt", tmp_path / "ids.parquet", tmp_path / "ids.csv"
    lines.write_text("0\n\n 3 \n")
    pq.write_table(pa.table({"point_id": [1, 2]}), table)
    comma.write_text("label,point_id\n1,1\n")
    chosen: dict[Choice, int] = {
        Choice(file=lines): 2,
        Choice(file=table): 2,
        Choice(file=comma): 1,
        Choice(points=("0",), file=table): 3,
        Choice(label=0): 2,
        Choice(label=1): 2,
        Choice(cycle=1): 3,
        Choice(cycle=2): 1,
        Choice(query="q1"): 1,
        Choice(query="h1"): 0,
        Choice(label=0, cycle=1, query="q2"): 1,
        Choice(label=1, query="q2"): 0,
        Choice(file=lines, cycle=1): 1,
    }
    for choice, count in chosen.items():
        assert restore(file, choice, "ada", "", dry_run=True).startswith(f"{count} point{'s' * (count != 1)} would be")
    ledger = ledger_of(load(file))
    assert ledger.removed_as_of() == {0, 1, 2}, "a dry run restores nothing"
    assert restore(file, Choice(label=1), "ada", "").startswith("2 points restored")
    assert (ledger.removed_as_of(), ledger.relabeled_contents()) == ({0, 2}, {})
    assert restore(file, Choice(label=1), "ada", "").startswith("no point is chosen")


def test_a_restored_id_that_the_data_set_no_longer_has_is_named(file: Path) -> None:
    assert restore(file, Choice(points=("2",)), "ada", "").endswith("back only when it has them again: 2")
    assert "no longer" not in restore(file, Choice(points=("3",)), "ada", "")


def test_restoring_what_is_kept_or_unknown_or_nothing_is_one_line_and_restores_nothing(
    file: Path, tmp_path: Path
) -> None:
    ledger = ledger_of(load(file))
    head = ledger.head()
    for wrong in ("4", "99", "x"):
        with pytest.raises(NotRemoved, match=f"neither removed nor relabelled, so not to be restored: {wrong};"):
            restore(file, Choice(points=("0", wrong)), "ada", "")
    with pytest.raises(BadInput, match="which points"):
        restore(file, Choice(), "ada", "")
    with pytest.raises(CycleConflict, match="cycle 9 was never opened"):
        restore(file, Choice(cycle=9), "ada", "")
    with pytest.raises(BadInput, match="--by is empty"):
        restore(file, Choice(cycle=1), " ", "")
    assert ledger.head() == head


def test_a_removal_whose_restoration_was_rolled_back_is_found_and_told_by_the_cycle_that_removed_it(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = ledger_of(load(file))
    back = proposed(3, [1], "restore")
    ledger.add_proposal(back)
    ledger.add_review(back.hash, "approve", "grace", "cli")
    ledger.apply_proposal(3, back.hash, manifest(range(N)), "ekfac", "k" * 64)
    ledger.roll_back(3, "rule:guardrail", "not proven")
    assert [(point.point_id, point.cycle, point.reason) for point in regrets(file).points] == [
        ("1", 1, "harmful"),
        ("2", 1, "harmful"),
    ]
    for choice, count in {Choice(cycle=1): 3, Choice(cycle=3): 0, Choice(query="q1"): 1, Choice(label=1): 2}.items():
        assert restore(file, choice, "ada", "", dry_run=True).startswith(f"{count} point")
    moved = {point.point_id: (point.reason, point.cycle) for point in difference(file, 0, 3).points}
    assert moved["1"] == ("harmful", 1)
    account = account_of(file, "1")
    assert account.removal is not None
    assert (account.removal.cycle, account.removal.reason, account.removal.actor) == (1, "harmful", "ada")
    print_account(account, as_json=False)
    text = said(capsys)
    assert "cycle 3: remove again, as cycle 1 did by ada, at" in text
    assert "by rule:guardrail: not proven" in text


def test_diff_counts_what_was_done_between_two_cycles_by_reason_and_class(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    restore(file, Choice(points=("1",)), "bob", "was right")
    found = difference(file, 0, 2)
    assert [(row.change, row.label, row.points) for row in found.counts] == [
        ("relabeled", 1, 1),
        ("removed", 0, 2),
        ("removed", 1, 1),
    ]
    later = difference(file, 1, 3)
    assert [(point.point_id, point.change, point.new_label) for point in later.points] == [
        ("3", "relabeled", 1),
        ("1", "restored", None),
    ]
    assert difference(file, 0, 3).points[0].point_id == "0", "1 is as it was: removed and restored"
    assert len(difference(file, 0, 3).points) == 3
    print_difference(later, as_json=False)
    assert "restored was right" in said(capsys)
    with pytest.raises(BadInput, match="earlier cycle first"):
        difference(file, 2, 1)
    with pytest.raises(CycleConflict, match="cycle 9 was never opened"):
        difference(file, 1, 9)


def test_regret_lists_removed_points_that_the_newest_scores_call_helpful_beyond_their_error(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = regrets(file)
    assert [(point.point_id, point.cycle, point.z) for point in found.points] == [("1", 1, 3.0), ("2", 1, 2.0)]
    assert (found.scored, found.removed, found.by_cycle) == (3, 3, {1: 2})
    print_regrets(found, as_json=False)
    assert "2 of 3 removed points would help" in said(capsys)
    assert ledger_of(load(file)).removed_as_of() == {0, 1, 2}, "nothing is restored"


def test_verify_as_a_command_leaves_with_1_and_names_the_row_that_was_tampered_with(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = ledger_of(load(file))
    head = ledger.head()
    print_verification(ledger.verify(head), as_json=False)
    assert f"head {head}" in said(capsys)
    with duckdb.connect(str(ledger.path)) as con:
        con.execute("UPDATE actions SET actor = 'eve' WHERE point_id = '1'")
        [(seq,)] = con.sql("SELECT seq FROM actions WHERE point_id = '1'").fetchall()
    done: Any = tamis("ledger", "verify", "--file", file, "--head", head)
    assert (done.returncode, done.stderr) == (1, "")
    assert f"row {seq} of actions is not what was written" in done.stdout
    assert "no link of this chain" in done.stdout
    refused: Any = tamis("ledger", "verify", "--file", file, "--head", "nonsense")
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1


def test_a_limit_below_one_is_refused(file: Path) -> None:
    refused: Any = tamis("ledger", "log", "--file", file, "--limit", "-3")
    assert refused.returncode == 2
    assert "Invalid value for '--limit'" in refused.stderr
    assert "greater than or equal to 1" in refused.stderr
