"""deploy/prefect.yaml on a real Prefect server: its pools and deployments are taken, and a worker runs a cycle."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from flows.config import load
from flows.stores import ledger_of
from tests.faults.harness import ROOT
from tests.flows.helpers import write_toml

PATH = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
POOLS = {
    "tamis-process": ["--type", "process"],
    "tamis-docker": ["--type", "docker"],
    "tamis-kubernetes": [
        "--type",
        "kubernetes",
        "--base-job-template",
        str(ROOT / "deploy" / "kubernetes" / "work-pool.json"),
    ],
}
pytestmark = pytest.mark.service


def prefect(*arguments: str, cwd: Path) -> str:
    """Prefect's own command, on the server of the session."""
    from prefect.settings import PREFECT_API_URL

    environment = {"PREFECT_API_URL": str(PREFECT_API_URL.value()), "PREFECT_HOME": str(cwd), "PYTHONPATH": PATH}
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", *arguments],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.usefixtures("prefect_server")
def test_the_shipped_pools_and_deployments_are_taken_and_a_worker_runs_a_cycle(tmp_path: Path) -> None:
    from prefect.client.orchestration import get_client

    settings = tmp_path / "prefect.yaml"
    settings.write_text((ROOT / "deploy" / "prefect.yaml").read_text().replace("/srv/tamis", str(tmp_path)))
    file = write_toml(tmp_path / "digits", dataset="digits", orchestrator="prefect")
    for pool, arguments in POOLS.items():
        prefect("work-pool", "create", pool, *arguments, cwd=tmp_path)
    prefect("deploy", "--all", "--prefect-file", str(settings), cwd=tmp_path)

    shipped = {one["name"]: one for one in yaml.safe_load(settings.read_text())["deployments"]}
    with get_client(sync_client=True) as client:
        for name, one in shipped.items():
            taken = client.read_deployment_by_name(f"tamis-cycle/{name}")
            assert taken.work_pool_name == one["work_pool"]["name"]
            assert taken.parameters == one["parameters"]
            assert [schedule.active for schedule in taken.schedules] == [True]
            assert taken.global_concurrency_limit is not None
            assert taken.global_concurrency_limit.limit == 1
            known = client.read_work_pool(taken.work_pool_name).base_job_template["variables"]["properties"]
            assert taken.job_variables.keys() <= known.keys()
        run = client.create_flow_run_from_deployment(client.read_deployment_by_name("tamis-cycle/digits").id)
        prefect("worker", "start", "--pool", "tamis-process", "--run-once", cwd=tmp_path)
        ended = client.read_flow_run(run.id)
    assert ended.state_name == "Completed", ended.state
    assert ledger_of(load(file)).state(1) == "promoted"
