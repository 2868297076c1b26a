"""`tamis trigger`: a cycle now, begun by whoever serves the data set."""

from __future__ import annotations

import os
from pathlib import Path

from flows.claims import service_url
from flows.config import Config, load
from flows.errors import BadInput, StageFailed
from flows.own_server import service_environment


def trigger_file(file: Path) -> str:
    """Ask Prefect for a run of a tamis.toml's deployment; the line says where to look at it.

    Raises:
        BadInput: Nobody serves it.
        StageFailed: Prefect's server does not answer.
    """
    config = load(file)
    url = reached(config)
    import httpx
    from prefect.client.orchestration import get_client

    from flows.deployments import FLOW, known_deployment

    try:
        with get_client(sync_client=True) as client:
            known = known_deployment(client, config)
            if known is None:
                raise BadInput(f"no deployment {FLOW}/{config.name} at {url}: `tamis serve {file}` registers it")
            run = client.create_flow_run_from_deployment(known.id)
    except httpx.HTTPError as error:
        raise StageFailed(f"Prefect's server at {url} does not answer ({error}); nothing was begun") from error
    return f"run {run.name!r} of {config.name} is due: {url.removesuffix('/api')}/runs/flow-run/{run.id}"


def reached(config: Config) -> str:
    """Have Prefect speak to the server of the workspace's service, or to that of PREFECT_API_URL.

    Returns:
        The address of its API.

    Raises:
        BadInput: There is neither.
    """
    url = os.environ.get("PREFECT_API_URL") or service_url(config.workspace)
    if not url:
        raise BadInput(f"nobody serves {config.file}: start `tamis serve {config.file}`, or set PREFECT_API_URL")
    service_environment(config.workspace)
    os.environ["PREFECT_API_URL"] = url
    return url
