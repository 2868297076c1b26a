"""The Prefect server that a service starts where it is given none: on loopback, with its database in the workspace.

It ends with the service, killed or not: `flows.warden` sees to that.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from flows import warden
from flows.errors import BadInput, StageFailed

HOST = "127.0.0.1"
PATIENCE = 180.0  # its first start makes its tables
SLOT_SECONDS = "5"


def service_environment(workspace: Path) -> None:
    """Set what Prefect reads at import, here and in what is started from here, but for what the user has set."""
    home = str(Path(__file__).resolve().parents[1])
    path = os.environ.get("PYTHONPATH")
    settings = {
        "PREFECT_HOME": str(workspace / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_SERVER_LEVEL": "WARNING",
        "PREFECT_LOGGING_INTERNAL_LEVEL": "WARNING",
        "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": SLOT_SECONDS,
        "DO_NOT_TRACK": "true",
        "PYTHONSAFEPATH": "1",  # the current folder may hold a package named like one of ours
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    os.environ["PYTHONPATH"] = f"{home}{os.pathsep}{path}" if path else home


@contextmanager
def own_server(workspace: Path, port: int) -> Iterator[str]:
    """The address of the API of a server that lives while the context is open.

    Args:
        workspace: Its database and log are in `prefect/` there.
        port: Of it; 0 takes a free one.

    Raises:
        BadInput: The port is taken.
        StageFailed: It does not begin to answer.
    """
    port = _free(port)
    url = f"http://{HOST}:{port}/api"
    log = workspace / "prefect" / "server.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)]
    with log.open("ab") as out:
        server = subprocess.Popen(
            [sys.executable, warden.__file__, str(os.getpid()), *command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=os.environ | {"PREFECT_UI_API_URL": url},
            start_new_session=True,
        )
    try:
        _await(server, url, log)
        yield url
    finally:
        server.terminate()
        server.wait()


def _free(port: int) -> int:
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((HOST, port))
        except OSError as error:
            raise BadInput(
                f"port {port} is taken: if by a Prefect server, set PREFECT_API_URL=http://{HOST}:{port}/api; "
                "else give another --port"
            ) from error
        return int(tried.getsockname()[1])


def answers(url: str) -> bool:
    """Whether a server, given by the address of its API, says anything: a proxy before it may want to know who asks."""
    return _status(url) is not None


def _status(url: str) -> int | None:
    try:
        return httpx.get(f"{url}/health", timeout=5).status_code
    except httpx.TransportError:
        return None


def _await(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while server.poll() is None and time.monotonic() < deadline:
        if _status(url) == httpx.codes.OK:
            return
        time.sleep(0.2)
    raise StageFailed(f"Prefect's server did not start; its log is {log}")
