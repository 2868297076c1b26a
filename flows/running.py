"""`tamis run`: the flow with what surrounds it, one process per workspace."""

from __future__ import annotations

import os
from pathlib import Path

from flows.announcements import dismiss
from flows.check import require
from flows.claims import service_url
from flows.config import Config, load
from flows.cycle import plainly, run_cycle
from flows.errors import StageFailed
from flows.logs import logged
from flows.opening import workspace
from flows.progress import progress_shown
from flows.redaction import secrets_in
from flows.server import end_left_server, interrupts_held, never_answered, prefect_environment
from flows.stores import ledger_of
from flows.summary import Summary
from flows.workload import Workload


def run_file(file: Path, *, dry_run: bool = False) -> Summary:
    """Run the cycle of a tamis.toml under the orchestrator that it names.

    Raises:
        BadInput: Something given cannot be used; nothing was begun, or the open cycle waits for it to be mended.
        StageFailed: A stage broke; the same command continues the cycle.
    """
    config = load(file)
    workload = require(config)
    with workspace(config):
        end_left_server(config.workspace)
        with logged(config.workspace, secrets_in(config.model_dump(mode="json", by_alias=True))):
            summary = _run(config, workload, dry_run)
        dismiss(config.workspace)
    return summary


def _run(config: Config, workload: Workload, dry_run: bool) -> Summary:
    if config.orchestrator == "none":
        with progress_shown() as show:
            return run_cycle(config, workload, plainly, show, dry_run=dry_run)
    if url := service_url(config.workspace):  # whose database that of a temporary server would be
        os.environ.setdefault("PREFECT_API_URL", url)
    prefect_environment(config.workspace)
    import httpx

    from flows.orchestration import curate

    with interrupts_held():  # until the flow begins, which is when its server is up
        try:
            return curate(str(config.file), dry_run)
        except (httpx.TransportError, RuntimeError) as error:
            if not isinstance(error, httpx.TransportError) and not never_answered(error):
                raise
            ledger = ledger_of(config)
            over = ledger.exists and ledger.last_cycle() is not None and ledger.unfinished_cycle() is None
            then = "the cycle has ended, `tamis status` says how" if over else "the same command continues"
            raise StageFailed(f"Prefect's server does not answer ({error}); {then}") from error
