"""What may leave a workspace: of older cycles scores, logs and plans; unused caches; what killed processes have left.

What explains a decision stays for ever: the ledger; of every cycle its manifest, proposal, report, settings and stages;
the scores that a standing removal or relabeling rests on; the newest scores. `training.keep` is for checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flows.config import Config, load
from flows.garbage import remove, torn_files, unended
from flows.opening import workspace
from flows.stores import ledger_of, store_uri
from flows.workload import CACHE, load_workload
from storage.files import TEMPORARY, read_json, size_of
from storage.records import FINAL
from storage.score_store import MANIFEST
from storage.tracking_health import end_runs

BULKY = ("logs", "plans", "scores")
"""Folders of a cycle that may go."""


@dataclass(frozen=True)
class Gone:
    """A file or a folder that may go, or went."""

    path: Path
    bytes: int


@dataclass(frozen=True)
class Collected:
    """What `tamis gc` found; it is still there after a dry run.

    Attributes:
        gone: Files and folders.
        runs: Names of MLflow runs that nothing would have ended.
    """

    gone: tuple[Gone, ...]
    runs: tuple[str, ...]
    dry_run: bool


def collect(file: Path, *, dry_run: bool = False) -> Collected:
    """Remove what may go from the workspace of a tamis.toml.

    Args:
        file: The tamis.toml.
        dry_run: Only find it.

    Raises:
        BadInput: A process works in the workspace, or the workload whose cache it has does not load.
    """
    config = load(file)
    with workspace(config):
        paths = [*torn_files(config.workspace), *outdated(config), *unused(config)]
        gone = tuple(Gone(path, size_of(path)) for path in paths)
        runs = unended(config)
        if not dry_run:
            discard(paths)
            if (store := store_uri(config)) is not None:
                end_runs(store, runs)
    return Collected(gone, tuple(run.name for run in runs), dry_run)


def outdated(config: Config) -> list[Path]:
    """What `retention.cycles` no longer keeps."""
    ledger, keep = ledger_of(config), config.retention.cycles
    last = ledger.last_cycle() if keep and ledger.exists else None
    old = [] if last is None else list(range(1, last.cycle - keep + 1))
    if not old:
        return []
    root = config.workspace / "cycles"
    cited = ledger.cited_cycles()
    newest = max((path.parent.parent.name for path in root.glob(f"*/scores/{MANIFEST}")), default="")
    found = []
    for cycle in old:
        folder = root / f"{cycle:06d}"
        if not any((folder / name).exists() for name in BULKY) or ledger.state(cycle) not in FINAL:
            continue  # the ledger is asked last: almost every old cycle has nothing left
        found += [folder / "logs", folder / "plans", *_copies(config.workspace, folder)]
        if cycle not in cited and folder.name != newest:
            found.append(folder / "scores")
    return [path for path in found if path.exists()] + _validations(config.workspace, root / f"{old[-1] + 1:06d}")


def unused(config: Config) -> list[Path]:
    """What the cache holds of other data, models or options than those of the configuration."""
    there = sorted(path for path in (config.workspace / CACHE).glob("*") if not path.name.endswith(TEMPORARY))
    if not there:
        return []
    cached = getattr(load_workload(config), "cached", None)
    return [] if cached is None else [path for path in there if path not in set(cached())]


def _copies(workspace: Path, folder: Path) -> list[Path]:
    """MLflow's copy of a cycle's scores, and what a killed process has left of it."""
    if not (folder / "cycle.json").exists():
        return []
    artifacts = workspace / "mlartifacts" / str(read_json(folder / "cycle.json")["mlflow_run"]) / "artifacts"
    return [*artifacts.glob(f".scores*{TEMPORARY}"), artifacts / "scores"]


def _validations(workspace: Path, oldest_kept: Path) -> list[Path]:
    """Models of `tamis validate` from before the oldest cycle that is kept: they only save training them again."""
    began = oldest_kept / "cycle.json"
    models = sorted((workspace / "validation" / "models").glob("*")) if began.exists() else []
    return [path for path in models if path.stat().st_mtime < began.stat().st_mtime]


def discard(paths: list[Path]) -> None:
    """Delete files and folders, each under a temporary name first: one that is half deleted never seems whole."""
    for path in paths:
        doomed = path if path.name.endswith(TEMPORARY) else path.with_name(f".{path.name}{TEMPORARY}")
        if doomed != path:
            if doomed.exists():
                remove(doomed)
            path.rename(doomed)
        remove(doomed)
