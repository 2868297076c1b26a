"""A workload without classes, a language model, through the whole cycle."""

from pathlib import Path
from typing import Any

from influence import auc
from storage import score_store
from tests.flows.helpers import turn, write_toml

LITTLE = f"{Path(__file__).with_name('little_lm.py')}:LittleLM"
SETTINGS: dict[str, dict[str, Any]] = {
    "training": {"epochs": 40, "learning_rate": 5e-3},
    "scoring": {"chunk": 32, "fisher": "sampled", "exact_head": False, "probe": 10},
    "pruning": {"policies": ["harmful"]},
}


def test_x(here: Path) -> None:
    import time

    t = time.process_time()
    summary = turn(write_toml(here, LITTLE, **SETTINGS))
    print(time.process_time() - t)
    print(summary.state, summary.decision, summary.candidates, summary.arms, summary.checks)
    table = score_store.read(here / "ws/cycles/000001/scores")
    print(table.schema)
    import torch

    infl = torch.tensor(table["influence"].to_pylist())
    loss = torch.tensor(table["loss"].to_pylist())
    wrong = torch.arange(180) < 18
    print("auc", auc(-infl, wrong), auc(loss, wrong))
    for r in table.to_pylist()[:2] + table.to_pylist()[-2:]:
        print(r)
    import shutil

    shutil.copytree(here, "/tmp/h/lm_out", dirs_exist_ok=True)
