"""Training by a command of the team's own, in place of our ranks (`training.command`).

The command is run once for each model, beside the TOML, with one argument: a JSON file of

    role, seed, steps, epochs   what to train; all arms take the same number of steps, unless some go to save load
    removed                     Parquet file whose column `point_id` is what to leave out; null: nothing
    relabeled                   Parquet file of `point_id`, `label`: the labels to train with in place of the given ones
    folder, save_at             where to leave `step-000123.safetensors`, the state dict of `model()`, after which steps

It ends with code 0. What an interrupted one left in the folder is still there when it is run again. Then everything is
as with our own trainer: the files are checked, committed as checkpoints and judged on the holdout set by the ranks.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

from flows.errors import BadInput, StageFailed
from flows.launch import Progress
from flows.plans import GIVEN, Job
from flows.ranks.weights import load_file
from flows.stages import Cycle
from flows.workload import load_workload, seeded_model
from storage.files import atomic_write_json


def train_elsewhere(cycle: Cycle, job: Job) -> None:
    """Have a model trained by the command, unless it has been already; the ranks commit and judge it.

    Raises:
        StageFailed: The command failed; names its log.
        BadInput: It left something else than it must.
    """
    folder, timing = job.folder / GIVEN, job.folder / "timing.json"
    if not (job.done or (timing.exists() and folder.exists())):
        started = _of_children()
        _run(cycle, job, folder)
        seconds = _of_children() - started
        _check(cycle, job, folder)
        atomic_write_json(timing, {"cpu_seconds_per_step": seconds / job.steps})


def _of_children() -> float:
    """CPU seconds of all processes that were started here and have ended, and of theirs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _run(cycle: Cycle, job: Job, folder: Path) -> None:
    name = f"{job.role}-seed{job.seed}"
    log = cycle.folder / "logs" / f"command-{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    given = job.model_dump(mode="json", include={"role", "seed", "steps", "removed", "relabeled", "save_at"})
    given |= {"epochs": cycle.config.training.epochs, "folder": str(folder)}
    file = cycle.folder / "plans" / f"command-{name}.json"
    atomic_write_json(file, given)
    cycle.show(Progress(f"training.command: {job.role}, seed {job.seed}", 0, 1))
    warden = [sys.executable, "-P", str(Path(__file__).with_name("warden.py")), str(os.getpid())]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*warden, *cycle.config.training.command, str(file)],
            cwd=cycle.config.file.parent,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
        try:
            code = process.wait()
        finally:
            process.terminate()
            process.wait()
    if code != 0:
        said = log.read_text(errors="replace").strip().splitlines()[-1:]
        raise StageFailed(f"training.command ended with code {code} for {name}: {' '.join(said)}; its log is {log}")


def _check(cycle: Cycle, job: Job, folder: Path) -> None:
    model = seeded_model(load_workload(cycle.config), job.seed)
    for step in job.save_at:
        file = folder / f"step-{step:06d}.safetensors"
        if not file.is_file():
            raise BadInput(
                f"training.command left no {file}: it must leave one for each step of save_at, {job.save_at}"
            )
        load_file(model, file)
