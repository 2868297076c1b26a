"""What a machine spends while a run goes on, which MLflow shows on a tab of its own."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import storage.mlflow_quiet  # noqa: F401

# isort: split
from mlflow import MlflowClient
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

PREFIX = "system/"
SWITCH = "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"
"""MLflow's own; what it calls off by default is on here."""


@contextmanager
def watched(uri: str, run: str) -> Iterator[None]:
    """Log CPU, memory, disk, network and GPUs every ten seconds while the context is open; MLflow can be told not to.

    Args:
        uri: Of the tracking store.
        run: One that may have failed before, and goes on now.
    """
    if os.environ.get(SWITCH, "true").lower() in ("false", "0"):
        yield
        return
    MlflowClient(uri).update_run(run, status="RUNNING")  # the monitor ends with a run that does not go on
    kind: Any = SystemMetricsMonitor
    monitor = kind(run, resume_logging=True, tracking_uri=uri)
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()
