"""A workspace of the first version, with a ledger of the first schema, goes on under this one (fixtures/README.md)."""

import sqlite3
import tarfile
from pathlib import Path

import pytest

from flows.config import load
from flows.decision import Act, decide
from flows.doctor import examine
from flows.evidence import account_of
from flows.export import export_file
from flows.inspection import open_ledger
from flows.moving import manifest_of_cycle
from storage.errors import StorageError
from storage.points import Manifest
from tests.flows.helpers import run_here, turn

ARCHIVE = Path(__file__).with_name("fixtures") / "workspace-0.1.0.tar.xz"
THERE = "/srv/curation/ws"
ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


@pytest.fixture
def file(one_rank: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project's TOML, unpacked; MLflow's addresses, which are absolute, as if it had always been here."""
    monkeypatch.setattr("flows.stages.run_ranks", run_here)
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    with sqlite3.connect(tmp_path / "ws" / "mlflow.db") as con:
        for table, column in ADDRESSES:
            con.execute(f"UPDATE {table} SET {column} = replace({column}, '{THERE}', '{tmp_path / 'ws'}')")
    return tmp_path / "tamis.toml"


def test_the_doctor_looks_at_it_and_leaves_it_of_the_old_schema(file: Path) -> None:
    ledger = file.parent / "ws" / "ledger.duckdb"
    before = ledger.read_bytes()
    findings = {finding.name: finding for finding in examine(load(file))}
    assert all(finding.ok for finding in findings.values())
    assert "of an older version" in findings["ledger"].text
    assert ledger.read_bytes() == before


def test_it_is_brought_up_to_date_after_a_copy_and_its_chain_verifies(file: Path) -> None:
    path = file.parent / "ws" / "ledger.duckdb"
    before = path.read_bytes()
    ledger = open_ledger(file)
    assert ledger.verify().holds
    assert path.with_name("ledger.duckdb.before-0002").read_bytes() == before
    assert len(ledger.removed_contents()) == 14
    assert [ledger.state(cycle) for cycle in (1, 2)] == ["promoted", "nothing_to_do"]


def test_why_answers_for_its_removals_and_restorations(file: Path) -> None:
    removed, restored = account_of(file, "train-001"), account_of(file, "train-000")
    assert (removed.status, removed.data, restored.status) == ("removed", "there", "restored")
    assert removed.removal is not None
    assert (removed.removal.cycle, removed.removal.actor, removed.removal.reason) == (1, "ada", "harmful+mislabeled")
    assert removed.proposals[0].decision == "approve"
    assert removed.scores is not None


@pytest.mark.slow
def test_its_next_cycle_opens_on_the_same_data_and_ends(file: Path) -> None:
    before = open_ledger(file).removed_contents()
    summary = turn(file)
    assert summary.cycle == 3
    assert summary.points == 120
    assert not summary.moved
    ledger = open_ledger(file)
    assert ledger.verify().holds
    assert ledger.removed_contents(2) == before
    decide(file, Act(summary.proposal, "approve", "ada", "tamis approve"))
    assert turn(file).state in ("promoted", "rolled_back")
    assert ledger.verify().holds
    told = account_of(file, "train-001")
    assert told.removal is not None
    assert told.removal.cycle == 1
    assert all(finding.ok for finding in examine(load(file)))


def test_the_data_set_after_its_last_cycle_can_be_exported(file: Path) -> None:
    exported = export_file(file, 2, file.parent / "out", text=False)
    assert (exported.export.kept, exported.export.removed) == (106, 14)
    path = manifest_of_cycle(load(file).workspace, 2)
    manifest = Manifest.read(path)
    Manifest(manifest.table.slice(1)).write(path)
    with pytest.raises(StorageError, match="cycle 2 started from"):
        export_file(file, 2, file.parent / "tampered", text=False)
