"""Promise 1, nothing is lost: kill -9 of everything in each stage, and the same command ends in the same ledger."""

from pathlib import Path

import pytest

from tests.faults.harness import Bench, ledger, models, proposal_hashes, tracked

# Where it hurts most: after a write that others can see, before the record that it was made.
KILLS = {
    "open, between two migrations of MLflow's database": (
        "alembic.runtime.migration:HeadMaintainer.update_to_step before 3 kill"
    ),
    "open, the run is in MLflow and the cycle not in the ledger": "storage.ledger:Ledger.open_cycle before 1 kill",
    "open, the cycle is in the ledger and has no folder": "storage.ledger:Ledger.open_cycle after 1 kill",
    "train, a first state is whole": "rank 0 storage.checkpoints:commit after 1 kill",
    "train, the last checkpoint is written and not committed": "rank 0 storage.checkpoints:write_tensors after 2 kill",
    "score, a fold model has answered": "rank 1 flows.ranks.folds:OutOfFold._train after 1 kill",
    "score, a checkpoint's curvatures are half kept": "rank 0 flows.ranks.kept:Kept.write before 3 kill",
    "score, some chunks are scored": "rank 1 flows.ranks.attribution:Attribution.score_chunk before 4 kill",
    "score, no shard is there": "rank 1 storage.score_store:write_chunk before 1 kill",
    "score, between two shards": "rank 0 storage.score_store:write_chunk after 2 kill",
    "propose, the proposal is in the ledger alone": "storage.ledger:Ledger.add_proposal after 1 kill",
    "review, the approval is in the ledger alone": "storage.ledger:Ledger.add_review after 1 kill",
    "apply, the removals stand in the ledger": "storage.ledger:Ledger.apply_proposal after 1 kill",
    "retrain, two of five models are done": "rank 0 storage.checkpoints:commit after 8 kill",
    "retrain, all are done and the stage has no result": "storage.ledger:Ledger.record_event after 1 kill",
    "judge, the verdict is in the ledger and the stage has no result": (
        "storage.ledger:Ledger.record_event after 2 kill"
    ),
    "conclude, the version is registered": "storage.tracking:Tracker.register after 1 kill",
    "publish, the report is logged and the arms are not": "storage.tracking:Tracker.log_report after 1 kill",
    "close, the champion is in service and the cycle open": "storage.tracking:Tracker.set_champion after 1 kill",
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    bench = Bench(tmp_path_factory.mktemp("undisturbed"))
    ended = bench.run()
    assert ended.code == 0, ended.err
    assert ended.lines == []
    assert bench.left() == [], "a normal end leaves no process"
    return bench


def test_a_cycle_killed_in_every_stage_ends_as_an_undisturbed_one(undisturbed: Bench, tmp_path: Path) -> None:
    bench, finished = Bench(tmp_path), {}
    for where, trap in KILLS.items():
        ended = bench.run(trap)
        assert ended.code == -9, f"{where}: not killed there, code {ended.code}: {ended.err}"
        assert bench.left() == [], where
        now = models(bench.workspace)
        assert {path: now.get(path) for path in finished} == finished, f"{where}: a finished model was touched"
        finished = now
    ended = bench.run()
    assert ended.code == 0, ended.err
    assert not list(bench.cycle.glob("checkpoints/*/state")), "a state outlived its training"
    assert models(bench.workspace) == finished, "a finished model was trained again"
    assert ledger(bench.workspace) == ledger(undisturbed.workspace)
    assert proposal_hashes(bench.workspace) == proposal_hashes(undisturbed.workspace)
    assert tracked(bench.workspace) == tracked(undisturbed.workspace)
    assert sorted(path.name for path in bench.cycle.parent.iterdir()) == ["000001"], "no cycle was opened twice"
    same = [path.relative_to(bench.workspace) for path in finished]
    assert sorted(same) == sorted(path.relative_to(undisturbed.workspace) for path in models(undisturbed.workspace))


def test_a_cycle_with_nothing_to_do_killed_once_its_baseline_serves_ends_the_same(tmp_path: Path) -> None:
    """The champion moves before the cycle is closed; judged anew, the baseline would meet itself as the champion."""
    benches = [Bench(tmp_path / name, q=1e-9) for name in ("undisturbed", "killed")]
    assert benches[1].run("storage.tracking:Tracker.set_champion after 1 kill").code == -9
    for bench in benches:
        ended = bench.run()
        assert ended.code == 0, ended.err
    assert ledger(benches[1].workspace) == ledger(benches[0].workspace)
    assert ledger(benches[0].workspace)["events"][-1][1] == "nothing_to_do"
    assert tracked(benches[1].workspace) == tracked(benches[0].workspace)
