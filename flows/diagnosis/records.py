"""What the workspace has written down: the ledger's chain, the files of its cycles, MLflow's runs; room for more."""

from __future__ import annotations

import shutil
from pathlib import Path

from flows.anchors import check_anchor
from flows.config import Config
from flows.diagnosis import servers
from flows.errors import BadInput
from flows.garbage import is_readable, torn_files, unended
from flows.holding import holder
from flows.stores import ledger_of
from storage import checkpoints, score_store
from storage.errors import CheckpointDamaged, ScoresDamaged
from storage.files import read_json, size_of

SHOWN = 3


def chain(config: Config) -> str:
    """Every row of the ledger is as it was written, and none is gone that MLflow knows of."""
    ledger = ledger_of(config)
    if not ledger.exists:
        _anchored(config)
        return "no ledger yet"
    if not is_readable(ledger):
        return "not verified, before another command has put the ledger in order"
    found = ledger.verify()
    if found.broken is not None:
        raise BadInput(
            f"{found.broken.text}: keep the file, and `tamis ledger import` a copy of the ledger from before into a "
            "workspace without one"
        )
    return f"{found.rows:,} rows verified, head {found.head}; {_anchored(config)}"


def _anchored(config: Config) -> str:
    if not servers.is_store_current(config):
        return "not compared with MLflow's, before its store is in order"
    return check_anchor(config) or "MLflow has none to compare it with"


def files(config: Config) -> str:
    """Nothing half written is left, and every cycle on disk is one of the ledger."""
    if (who := holder(config.workspace)) is not None:
        return f"not looked at, while process {who} works in the workspace"
    wrong = []
    if torn := torn_files(config.workspace):
        wrong.append(f"half written and left by a process that was killed: {_some(torn)}; `tamis gc` removes them")
    if unknown := _unknown_cycles(config):
        wrong.append(
            f"of no cycle of the ledger: {_some(unknown)}; the ledger is older than they: put a newer copy of it in "
            "its place, or move them away before the next cycle writes there"
        )
    if wrong:
        raise BadInput("; ".join(wrong))
    return "nothing half written, every cycle on disk is one of the ledger"


def _unknown_cycles(config: Config) -> list[Path]:
    ledger = ledger_of(config)
    if ledger.exists and not is_readable(ledger):
        return []
    last = ledger.last_cycle() if ledger.exists else None
    folders = sorted((config.workspace / "cycles").glob("[0-9]*"))
    return [folder for folder in folders if int(folder.name) > (last.cycle if last else 0)]


def models(config: Config) -> str:
    """Every checkpoint and every finished score on disk has the bytes that were written."""
    wrong, count = [], 0
    for manifest in sorted((config.workspace / "cycles").glob(f"*/checkpoints/**/step-*/{checkpoints.MANIFEST}")):
        count += 1
        try:
            checkpoints.verify(manifest.parent)
        except CheckpointDamaged as error:
            wrong.append(str(error))
    for manifest in sorted((config.workspace / "cycles").glob(f"*/scores/{score_store.MANIFEST}")):
        count += 1
        try:
            score_store.load(manifest.parent)
        except ScoresDamaged as error:
            wrong.append(str(error))
    if wrong:
        raise BadInput("; ".join(wrong))
    return f"{count:,} checkpoints and scores have the bytes that were written"


def runs(config: Config) -> str:
    """No MLflow run seems to go on for ever."""
    if (who := holder(config.workspace)) is not None:
        return f"not looked at, while process {who} works in the workspace"
    if not servers.is_store_current(config):
        return "not looked at, before the store is in order"
    if left := unended(config):
        named = ", ".join(f"{run.name} ({run.run[:8]})" for run in left[:SHOWN])
        raise BadInput(f"{len(left)} seem to go on in MLflow, and nothing will end them: {named}; `tamis gc` does")
    return "none is left running"


def disk(config: Config) -> str:
    """There is room for a cycle like the largest, and for what `tamis check` foretold."""
    free = shutil.disk_usage(next(path for path in (config.workspace, *config.workspace.parents) if path.exists())).free
    foretold = config.workspace / "forecast.json"
    needs = {}
    if taken := [_taken(config.workspace, found) for found in (config.workspace / "cycles").glob("[0-9]*/cycle.json")]:
        needs["the largest cycle took"] = max(taken)
    if foretold.exists():
        needs["`tamis check` foretold"] = int(read_json(foretold)["forecast"]["disk"])
    said = ", ".join(f"{what} {_bytes(size)}" for what, size in needs.items()) or "no cycle was run or tried yet"
    if max(needs.values(), default=0) > free:
        raise BadInput(f"{_bytes(free)} are free, {said}: free space, `tamis gc`, or give another workspace")
    return f"{_bytes(free)} are free; {said}"


def _taken(workspace: Path, record: Path) -> int:
    """Bytes of a cycle, with those that MLflow has of it."""
    run = str(read_json(record)["mlflow_run"])
    return size_of(record.parent) + size_of(workspace / "mlartifacts" / run)


def _some(paths: list[Path]) -> str:
    return ", ".join(map(str, paths[:SHOWN])) + (f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else "")


def _bytes(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.0f} MB"
