"""A proposal's hash: what enters it, what does not, and that disk cannot change it."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.budgets import Budgets
from storage.errors import ProposalDamaged
from storage.files import sha256_json
from storage.policies import Rule, policy_json
from storage.proposals import Proposal

ROWS = pa.table(
    {"point_id": [3, 10], "action": ["remove"] * 2, "reason": ["harmful", "mislabeled"], "score": [-1.0, 2.0]}
)
HARMFUL = Rule("harmful", "harmful", "influence", "<", 0.0)
PROPOSAL = Proposal(1, ROWS, "d", "s", {"q": 0.2})


def test_the_hash_of_a_proposal_never_changes_between_versions() -> None:
    # sha256sum of its canonical JSON, by hand:
    # {"dataset_sha256":"d","policy":{"q":0.2},"rows":[[3,"remove","harmful"],[10,"remove","mislabeled"]]}
    assert PROPOSAL.hash == "fedc49119556519dbe8c6a505a041e8a2ae36b00b57b9595f30c678a4b0bd297"


def test_rows_data_and_policy_enter_the_hash_and_scores_and_cycle_do_not() -> None:
    scored = ROWS.set_column(3, "score", pa.array([-1.0000001, 2.0]))
    assert replace(PROPOSAL, rows=scored, cycle=2, scores_sha256="other").hash == PROPOSAL.hash
    text = ROWS.set_column(0, "point_id", pa.array(["3", "10"]))
    others = [{"rows": ROWS.slice(1)}, {"rows": text}, {"dataset_sha256": "e"}, {"policy": {"q": 0.1}}]
    assert len({replace(PROPOSAL, **other).hash for other in others} | {PROPOSAL.hash}) == 5  # type: ignore[arg-type]


def test_the_policy_holds_what_the_user_set_and_no_score() -> None:
    def policy(threshold: float, q: float, cycle: float) -> str:
        rule = Rule("harmful", "harmful", "harm_fdr", "<=", threshold, parameters={"q": q})
        return json.dumps(policy_json([rule], Budgets(cycle, 0.3, 0.3)))

    assert policy(0.2, 0.2, 0.15) == policy(0.1999, 0.2, 0.15)
    assert len({policy(0.2, 0.2, 0.15), policy(0.2, 0.1, 0.15), policy(0.2, 0.2, 0.1)}) == 3
    budgets, rules = Budgets(0.1, 0.3, 0.3), [HARMFUL, Rule("mislabeled", "mislabeled", "suspicion", ">=", 0.5)]
    assert policy_json(rules, budgets) == policy_json(rules[::-1], budgets), "the order of rules is no setting"
    by_loss = [replace(rule, rank_column="loss") for rule in rules]
    assert policy_json(rules, budgets) != policy_json(by_loss, budgets)


def test_a_proposal_reads_back_as_written(tmp_path: Path) -> None:
    assert not Proposal.exists(tmp_path)
    PROPOSAL.write(tmp_path)
    again = Proposal.read(tmp_path)
    assert again.hash == PROPOSAL.hash
    assert again.points == [3, 10]
    assert again.rows.equals(ROWS)


def test_a_kill_while_a_proposal_is_written_over_another_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    PROPOSAL.write(tmp_path)
    monkeypatch.setattr("storage.proposals.atomic_write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        replace(PROPOSAL, rows=ROWS.slice(1)).write(tmp_path)
    assert not Proposal.exists(tmp_path)


def test_a_proposal_changed_on_disk_is_refused(tmp_path: Path) -> None:
    PROPOSAL.write(tmp_path)
    pq.write_table(ROWS.slice(1), tmp_path / "proposal.parquet")
    with pytest.raises(ProposalDamaged, match="has changed since it was proposed; delete"):
        Proposal.read(tmp_path)
    PROPOSAL.write(tmp_path)
    seal = tmp_path / "proposal.json"
    seal.write_text(seal.read_text().replace('"q": 0.2', '"q": 0.5'))
    with pytest.raises(ProposalDamaged, match="but hashes to"):
        Proposal.read(tmp_path)


def test_a_relabeling_enters_the_hash_with_its_label_and_a_null_label_does_not() -> None:
    labels = pa.array([None, 7], pa.int32())
    rows = ROWS.append_column("new_label", labels).set_column(1, "action", pa.array(["remove", "relabel"]))
    # sha256sum of its canonical JSON, by hand:
    # {"dataset_sha256":"d","policy":{"q":0.2},"rows":[[3,"remove","harmful"],[10,"relabel:7","mislabeled"]]}
    relabeled = replace(PROPOSAL, rows=rows)
    assert relabeled.hash == "8502e135b8701264b7d7c396ec6f19cf7e72c6cd68d8a08e8fdbc2e45c513d98"
    none = ROWS.append_column("new_label", pa.nulls(2, pa.int32()))
    assert replace(PROPOSAL, rows=none).hash == PROPOSAL.hash


def test_the_hash_does_not_depend_on_how_the_rows_are_cut_into_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = PROPOSAL.hash
    monkeypatch.setattr("storage.proposals.BATCH", 1)
    assert replace(PROPOSAL, cycle=2).hash == whole
    assert replace(PROPOSAL, rows=pa.concat_tables([ROWS.slice(0, 1), ROWS.slice(1)])).hash == whole
    empty = replace(PROPOSAL, rows=ROWS.slice(0, 0))
    assert empty.hash == sha256_json({"rows": [], "dataset_sha256": "d", "policy": {"q": 0.2}})
