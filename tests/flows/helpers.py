"""What the tests of the flows share: a TOML, a command, and the rank programs called inside this process."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from flows.agents import Launch
from flows.check import require
from flows.config import Config, load
from flows.cycle import plainly, run_cycle
from flows.launch import Progress, run_ranks
from flows.plans import Plan, PreviewPlan, ScorePlan, TrainPlan, read_plan, write_plan
from flows.ranks.rank import Rank
from flows.summary import Summary

BLOBS = f"{Path(__file__).with_name('blobs.py')}:Blobs"
SMALL: Mapping[str, Mapping[str, Any]] = {
    "training": {"ranks": 1, "epochs": 25, "batch_size": 32, "checkpoints": [0.5, 1.0]},
    "scoring": {"ranks": 1, "chunk": 50, "folds": 3, "repeats": 1},
    "pruning": {"mislabeled_q": 0.2},  # of so few points posteriors are not sure enough for the shipped rate
    "review": {"mode": "auto"},
    "guardrail": {"seeds": 2, "resamples": 200},
}


def write_toml(folder: Path, entry: str = BLOBS, options: Mapping[str, Any] | None = None, **sections: Any) -> Path:
    """Write a tamis.toml: the settings of SMALL, each section updated by the one given; other values are top keys."""
    tables = {
        name: {**SMALL.get(name, {}), **sections.pop(name, {})}
        for name in (*SMALL, "launch", "retention", "service", "servers")
    }
    top = {"workspace": "ws", "orchestrator": "none", **sections}
    lines = [f"{key} = {_toml(value)}" for key, value in top.items()]
    lines += ["[workload]", f"class = {_toml(entry)}", f"options = {_toml(dict(options or {}))}"]
    for name, table in tables.items():
        lines += [f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in table.items())]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tamis.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    return json.dumps(value)


def tamis(*arguments: object, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    return subprocess.run(
        [Path(sys.executable).with_name("tamis"), *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def launch(program: str, plan: Plan, ranks: int) -> None:
    """Run a rank program on real ranks."""
    path = write_plan(plan, plan.logs / f"{program}.json")
    run_ranks(Launch(program, path, ranks, plan.logs, heartbeat_seconds=120), lambda _: None)


def run_here(job: Launch, show: Callable[[Progress], None]) -> None:
    """Stands in for `run_ranks`: the same rank program, as the only rank, in this process."""
    threads, linear = torch.get_num_threads(), torch.nn.functional.linear
    torch.set_num_threads(1)
    job.logs.mkdir(parents=True, exist_ok=True)
    rank = Rank(0, 1, job.file(0, "beat"))
    try:
        if job.program == "train":
            from flows.ranks.train import Trainer

            Trainer(read_plan(TrainPlan, job.plan), rank).run()
        elif job.program == "preview":
            from flows.ranks.preview import Previewing

            Previewing(read_plan(PreviewPlan, job.plan), rank).run()
        else:
            from flows.ranks.score import Scoring

            Scoring(read_plan(ScorePlan, job.plan), rank).run()
    finally:
        torch.set_num_threads(threads)
        torch.nn.functional.linear = linear  # ZeRO stage 3 leaves its own behind, in what would be a rank's process


def turn(file: Path, *, dry_run: bool = False) -> Summary:
    """One `tamis run` without Prefect, inside this process."""
    config: Config = load(file)
    return run_cycle(config, require(config), plainly, lambda _: None, dry_run=dry_run)
