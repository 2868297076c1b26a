"""`tamis doctor`: what of the installation and the workspace is not as it should be. It looks, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import psutil

from flows.config import Config
from flows.diagnosis import installation, processes, records, servers
from flows.errors import BadInput
from flows.findings import Finding
from storage.errors import StorageError

DIAGNOSES: Mapping[str, Callable[[Config], str]] = {
    "versions": installation.versions,
    "prefect": servers.prefect,
    "mlflow": servers.mlflow,
    "workspace": processes.workspace,
    "processes": processes.processes,
    "ledger": processes.ledger_lock,
    "chain": records.chain,
    "files": records.files,
    "models": records.models,
    "runs": records.runs,
    "disk": records.disk,
}


def examine(config: Config) -> list[Finding]:
    """One finding for each thing that must hold; a fault of one keeps no other from being looked at."""
    findings = []
    for name, diagnose in DIAGNOSES.items():
        try:
            findings.append(Finding(name, True, diagnose(config)))
        except (BadInput, StorageError) as error:
            findings.append(Finding(name, False, str(error)))
        except (OSError, psutil.Error) as error:  # a process at work takes away what is being looked at
            said = " ".join(str(error).split())
            findings.append(Finding(name, False, f"could not be looked at ({said}): look again"))
    return findings
