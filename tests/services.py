"""The servers of deploy/compose.yaml as plain processes on this machine's loopback address, one of each per session."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import yaml

START_SECONDS = 240.0
HERE = "127.0.0.1"
BIN = Path(sys.executable).parent
COMPOSE = Path(__file__).parents[1] / "deploy/compose.yaml"


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on; above them, at +10000, nobody either."""
    found: list[int] = []
    while len(found) < count:
        with socket.socket() as one, socket.socket() as other:
            one.bind((HERE, 0))
            port = one.getsockname()[1]
            try:
                other.bind((HERE, port + 10000))
            except (OSError, OverflowError):
                continue
            found.append(port)
    return found


@dataclass
class Service:
    """A server that this session started: `kill` and `start` it at will.

    Attributes:
        environment: What its clients have in theirs: credentials.
    """

    name: str
    command: list[str]
    folder: Path
    port: int
    is_up: Callable[[], bool]
    environment: Mapping[str, str]
    user: str | None = None
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> None:
        """Start it and wait until it answers."""
        log = (self.folder / f"{self.name}.log").open("ab")
        self.process = subprocess.Popen(
            self.command,
            cwd=self.folder,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | self.environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            user=self.user,
        )
        deadline = time.monotonic() + START_SECONDS
        while not self.is_up():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} did not start:\n{(self.folder / log.name).read_text()[-2000:]}")
            time.sleep(0.1)

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        """End it and its children."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, how)
            self.process.wait()


@contextmanager
def running(service: Service) -> Iterator[Service]:
    """The service, from its start to its end."""
    try:
        service.start()
        yield service
    finally:
        service.kill(signal.SIGQUIT if service.name == "postgres" else signal.SIGKILL)


def answers(url: str) -> bool:
    """Whether a web server says that it is well."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _programs() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if not found:
        raise RuntimeError("PostgreSQL is not installed; `make postgres` installs it")
    return found[-1].parent


@contextmanager
def postgres() -> Iterator[Service]:
    """PostgreSQL, as a user that is not root, with a password that is known to this session alone."""
    programs, password, (port,) = _programs(), secrets.token_hex(16), free_ports(1)
    folder = Path(tempfile.mkdtemp(prefix="tamis-postgres-"))  # pytest's own folders let no other user in
    user = "postgres" if os.getuid() == 0 else None
    try:
        (folder / "password").write_text(password)
        for path in (folder, folder / "password"):
            shutil.chown(path, user) if user else None
        data = folder / "data"
        made = ["-D", str(data), "-U", "tamis", "-A", "scram-sha-256", "--pwfile", str(folder / "password"), "-N"]
        subprocess.run([programs / "initdb", *made], check=True, user=user, cwd=folder, stdout=subprocess.DEVNULL)
        command = [str(programs / "postgres"), "-D", str(data), "-h", HERE, "-p", str(port), "-k", str(folder)]
        command += ["-c", "fsync=off"]  # no test takes the power away
        ready = [programs / "pg_isready", "-q", "-h", HERE, "-p", str(port)]
        up = lambda: subprocess.run(ready).returncode == 0  # noqa: E731
        with running(Service("postgres", command, folder, port, up, {"PGPASSWORD": password}, user)) as service:
            yield service
    finally:
        shutil.rmtree(folder)


def database(server: Service, name: str) -> str:
    """Make a database; its address, without the password."""
    where = f"postgresql://tamis@{HERE}:{server.port}"
    make = [_programs() / "psql", "-q", f"{where}/postgres", "-c", f'CREATE DATABASE "{name}"']
    subprocess.run(make, check=True, env=os.environ | server.environment)
    return f"{where}/{name}"


@contextmanager
def object_store(folder: Path) -> Iterator[Service]:
    """SeaweedFS, whose S3 interface asks for a signature."""
    master, volume, filer, port, metrics = free_ports(5)
    ports = {"-master.port": master, "-volume.port": volume, "-filer.port": filer, "-s3.port": port}
    here = {"-dir": folder, "-ip": HERE, "-ip.bind": HERE, "-metricsPort": metrics, "-master.volumeSizeLimitMB": 64}
    command = [str(BIN / "weed"), "-logtostderr", *composed("s3", ports | here)]
    keys = {"AWS_ACCESS_KEY_ID": "tamis", "AWS_SECRET_ACCESS_KEY": secrets.token_hex(16), "AWS_REGION": "us-east-1"}
    where = {"AWS_ENDPOINT_URL_S3": f"http://{HERE}:{port}", "MLFLOW_S3_ENDPOINT_URL": f"http://{HERE}:{port}"}
    up = lambda: answers(f"http://{HERE}:{port}/healthz")  # noqa: E731
    with running(Service("seaweedfs", command, folder, port, up, keys | where)) as service:
        yield service


@contextmanager
def mlflow_server(folder: Path, database: str, environment: Mapping[str, str]) -> Iterator[Service]:
    """MLflow on a database; artifacts go through it to the bucket `tamis`."""
    (port,) = free_ports(1)
    given = {"--host": HERE, "--port": port, "--workers": 1, "--allowed-hosts": f"{HERE}:{port}"}
    given |= {"--backend-store-uri": database.replace("postgresql:", "postgresql+psycopg:")}
    command = [sys.executable, "-m", *composed("mlflow", given)]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    up = lambda: answers(f"http://{HERE}:{port}/health")  # noqa: E731
    with running(Service("mlflow", command, folder, port, up, {**environment, **quiet})) as service:
        yield service


@contextmanager
def prefect_server(folder: Path, database: str, environment: Mapping[str, str]) -> Iterator[Service]:
    """Prefect on a database."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", *composed("prefect", {"--host": HERE, "--port": port})]
    settings = {
        "PREFECT_API_DATABASE_CONNECTION_URL": database.replace("postgresql:", "postgresql+asyncpg:"),
        "PREFECT_HOME": str(folder),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
    up = lambda: answers(f"http://{HERE}:{port}/api/health")  # noqa: E731
    with running(Service("prefect", command, folder, port, up, {**environment, **settings})) as service:
        yield service


def composed(name: str, given: Mapping[str, object]) -> list[str]:
    """The command of a service in deploy/compose.yaml, with some options for this machine."""
    command = yaml.safe_load(COMPOSE.read_text())["services"][name]["command"]
    kept = [part for part in command if part.split("=")[0] not in given]
    return [*kept, *(f"{option}={value}" for option, value in given.items())]
