"""The last lines of `tamis check`: what a cycle will take of this machine, from a trial, and whether it has as much."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from flows.config import Config
from flows.errors import BadInput, StageFailed
from flows.findings import Finding
from flows.forecast import Forecast, foretell
from flows.hindsight import keep
from flows.opening import TRIAL, workspace
from flows.progress import progress_shown
from flows.sections.launching import nodes_of
from flows.stores import ledger_of
from flows.trial import measure
from flows.workload import load_workload
from influence.errors import InfluenceError
from storage.errors import StorageError

CGROUP = Path("/sys/fs/cgroup/memory.max")
STAGES = {
    "train": "train",
    "score": "score",
    "retrain": "retrain and judge, with every seed",
}


def outlook(config: Config) -> list[Finding]:
    """Try the settings for some seconds, keep the forecast in the workspace, and say it.

    Args:
        config: Of a workload that is in order.
    """
    if nodes_of(config.launch.launcher) > 1:
        return [Finding("forecast", True, "none: launch.launcher has several nodes, of which this is one")]
    try:
        forecast = _forecast(config)
    except (BadInput, StageFailed, StorageError, InfluenceError) as error:
        return [Finding("trial", False, str(error))]
    return [_time(config, forecast), _memory(config, forecast), _disk(config, forecast)]


def _forecast(config: Config) -> Forecast:
    with workspace(config), progress_shown() as show:
        trial = measure(config, load_workload(config), config.workspace / TRIAL, show)
        ledger = ledger_of(config)
        removed = len(ledger.removed_contents()) if ledger.exists else 0
        forecast = foretell(trial, config, max(1, trial.points - removed))
        keep(config, forecast)
    return forecast


def _time(config: Config, forecast: Forecast) -> Finding:
    said = ", ".join(
        f"{forecast.seconds[stage]:,.0f} s to {what}" for stage, what in STAGES.items() if stage in forecast.seconds
    )
    own = "; what training.command takes is not known" if config.training.command else ""
    most = ", at most" if config.training.early_stopping else ""
    return Finding("time", True, f"{said}{most}{own}")


def _memory(config: Config, forecast: Forecast) -> Finding:
    has = memory_here()
    ranks = {"train": config.training.ranks, "score": config.scoring.ranks}
    each = {program: forecast.memory[program] for program in ranks if program in forecast.memory}
    said = ", ".join(
        f"{_bytes(size)} for each of {ranks[program]} ranks that {program}" for program, size in each.items()
    )
    gpu = "".join(f"; on the GPU {_bytes(size)} to {program}" for program, size in forecast.device_memory.items())
    enough = all(size * ranks[program] <= has for program, size in each.items())
    remedy = "" if enough else ": give fewer ranks, less scoring.factor_cache or scoring.placement = 'split'"
    return Finding("memory", enough, f"{said}{gpu}; this machine has {_bytes(has)}{remedy}")


def _disk(config: Config, forecast: Forecast) -> Finding:
    free = shutil.disk_usage(config.workspace).free
    said = f"{_bytes(forecast.kept)} of checkpoints and scores, {_bytes(forecast.disk)} at most while a cycle runs"
    remedy = "" if forecast.disk <= free else ": free space, or give another workspace"
    return Finding("disk", forecast.disk <= free, f"{said}; {_bytes(free)} are free{remedy}")


def memory_here() -> int:
    """Bytes of memory that the ranks may take together: the machine's, or less where a container is bounded."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    bound = CGROUP.read_text(encoding="utf-8").strip() if CGROUP.exists() else "max"
    return physical if bound == "max" else min(physical, int(bound))


def _bytes(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.0f} MB"
