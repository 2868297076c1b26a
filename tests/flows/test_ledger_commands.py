"""`tamis ledger` on a workspace of three cycles that nobody had to train."""

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
from flows.restoration import Choice, restore
from flows.stages import cycle_folder
from flows.stores import ledger_of
from storage.errors import CycleConflict, NotRemoved
from tests.flows.helpers import tamis
from tests.flows.ledger_cases import N, manifest, proposed, said, three_cycles


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return three_cycles(tmp_path)


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
