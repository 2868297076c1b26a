"""A workspace under faults: commands as real processes, what they leave, and what a cycle comes to in the end."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import psutil

from flows.server import MARK

ROOT = Path(__file__).parents[2]
TAMIS = Path(sys.executable).parent / "tamis"
PATIENCE = 240.0  # seconds until a wait is given up; no test depends on how long anything takes

SETTINGS = """
workspace = "workspace"
orchestrator = "{orchestrator}"
[workload]
class = "{workload}"
[training]
epochs = {epochs}
checkpoints = [0.5, 1.0]
[scoring]
chunk = 25
folds = 2
repeats = 1
neighbours = 5
[pruning]
mislabeled_q = {q}
harmful_q = {q}
[review]
mode = "auto"
[guardrail]
seeds = 2
resamples = 100
[launch]
heartbeat_seconds = {heartbeat}
attempts = {attempts}
launcher = {launcher}
"""


@dataclass
class Ended:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """What standard error says beside the progress: `HH:MM:SS phase: …`."""
        return [line for line in self.err.splitlines() if line.strip() and line[2:3] + line[5:6] != "::"]


@dataclass
class Bench:
    """One tamis.toml with its workspace, and the processes that its commands have started, behind a prefix if any."""

    folder: Path
    workload: str = "tiny"
    orchestrator: str = "none"
    epochs: int = 10
    q: float = 0.2
    heartbeat: float = 300.0
    attempts: int = 1
    launcher: str = '{ kind = "torchrun", nnodes = 1 }'
    prefix: tuple[str, ...] = ()
    seen: set[psutil.Process] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.configure()

    @property
    def file(self) -> Path:
        return self.folder / "tamis.toml"

    @property
    def workspace(self) -> Path:
        return self.folder / "workspace"

    @property
    def cycle(self) -> Path:
        return self.workspace / "cycles" / "000001"

    def configure(self, **changes: Any) -> None:
        """Write the tamis.toml."""
        for name, value in changes.items():
            setattr(self, name, value)
        self.file.write_text(
            SETTINGS.format(
                orchestrator=self.orchestrator,
                workload=self.workload,
                epochs=self.epochs,
                q=self.q,
                heartbeat=self.heartbeat,
                attempts=self.attempts,
                launcher=self.launcher,
            )
        )

    def start(self, *traps: str, arguments: tuple[str, ...] = ()) -> "Command":
        """Start `tamis run`, alone in a session of its own, with traps set if there are any."""
        if traps:
            return Command(self, [*self.prefix, sys.executable, "-m", "tests.faults.trap", str(self.file), *traps])
        return Command(self, [*self.prefix, str(TAMIS), "run", str(self.file), *arguments])

    def run(self, *traps: str, arguments: tuple[str, ...] = ()) -> Ended:
        """Run `tamis run` to its end."""
        return self.start(*traps, arguments=arguments).wait()

    def left(self, patience: float = 20.0) -> list[str]:
        """Processes of ours that still live, those given a moment to die included; none is right."""
        found: list[str] = []

        def none_lives() -> bool:
            living = {process for process in self.seen if alive(process)}
            mark = str(self.folder)
            for process in psutil.process_iter():
                try:
                    named = mark in " ".join(process.cmdline()) or process.environ().get(MARK, "").startswith(mark)
                except (psutil.AccessDenied, psutil.NoSuchProcess):
                    continue
                if named and alive(process):
                    living.add(process)
            found[:] = [f"{process.pid} {command_line(process)}" for process in living]
            return not found

        wait_for(none_lives, "processes to end", patience=patience, strict=False)
        return found


def heed_ctrl_c() -> None:
    """Undo what a shell does to a job in the background: it has SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Command:
    """A command as the foreground process group of a session; what it writes goes to files."""

    def __init__(self, bench: Bench, line: list[str], name: str = "first") -> None:
        self._bench = bench
        self._out, self._err = bench.folder / f"{name}.out", bench.folder / f"{name}.err"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = psutil.Popen(
                line,
                cwd=bench.folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
                preexec_fn=heed_ctrl_c,
                env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"},
            )

    def press_ctrl_c(self) -> None:
        """What a terminal does: SIGINT to the whole foreground process group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def tree(self) -> list[psutil.Process]:
        """The processes below it, noted for `Bench.left`."""
        try:
            below: list[psutil.Process] = self.process.children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        self._bench.seen.update(below)
        return below

    def until(self, there: Callable[[], Any], what: str) -> None:
        """Wait until something is there; the command must not end before."""

        def happened() -> bool:
            self.tree()
            assert self.process.poll() is None, f"ended before {what}: {self._err.read_text()}"
            return bool(there())

        wait_for(happened, what)

    def wait(self) -> Ended:
        """Wait for its end, noting every process that it starts."""

        def ended() -> bool:
            self.tree()
            return self.process.poll() is not None

        wait_for(ended, "the command to end")
        return Ended(self.process.returncode, self._out.read_text(), self._err.read_text())


def servers(command: Command) -> list[psutil.Process]:
    """Prefect's servers below a command."""
    return [process for process in command.tree() if "prefect.server" in command_line(process)]


def wait_for(there: Callable[[], bool], what: str, patience: float = PATIENCE, strict: bool = True) -> None:
    """Poll until something holds."""
    deadline = time.monotonic() + patience
    while not there():
        if time.monotonic() > deadline:
            assert not strict, f"waited in vain for {what}"
            return
        time.sleep(0.1)


def alive(process: psutil.Process) -> bool:
    """Whether it runs, and is not only waited for."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return "gone"


TABLES: Mapping[str, str] = {
    "cycles": "SELECT cycle, parent, dataset_sha256 FROM cycles ORDER BY ALL",
    "events": "SELECT cycle, state, key, actor, detail_json FROM events WHERE state <> 'failed' ORDER BY seq",
    "proposals": "SELECT cycle, hash, dataset_sha256, scores_sha256, policy_json, size FROM proposals ORDER BY ALL",
    "proposal_rows": "SELECT * FROM proposal_rows ORDER BY ALL",
    "reviews": "SELECT cycle, hash, decision, actor, how, reason FROM reviews ORDER BY ALL",
    "actions": "SELECT * EXCLUDE (seq, event_at) FROM actions ORDER BY ALL",
}
"""The ledger without sequence numbers, times and the random names of MLflow's runs."""


def ledger(workspace: Path) -> dict[str, list[tuple[Any, ...]]]:
    """All that the ledger says, table by table."""
    with duckdb.connect(str(workspace / "ledger.duckdb"), read_only=True) as con:
        return {table: con.sql(query).fetchall() for table, query in TABLES.items()}


def failures(workspace: Path) -> list[tuple[int, dict[str, Any]]]:
    """Cycle and detail of every failure in the ledger."""
    query = "SELECT cycle, detail_json FROM events WHERE state = 'failed' ORDER BY seq"
    with duckdb.connect(str(workspace / "ledger.duckdb"), read_only=True) as con:
        return [(cycle, json.loads(detail)) for cycle, detail in con.sql(query).fetchall()]


def failure_tag(workspace: Path) -> str | None:
    """What MLflow says that failed last, of the cycle."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{workspace / 'mlflow.db'}")
    runs = client.search_runs([found.experiment_id for found in client.search_experiments()])
    return next((run.data.tags["tamis.failure"] for run in runs if "tamis.failure" in run.data.tags), None)


def proposal_hashes(workspace: Path) -> list[str]:
    return [row[1] for row in ledger(workspace)["proposals"]]


def tracked(workspace: Path, server: str = "", name: str = "") -> dict[str, Any]:
    """What MLflow holds: its runs with status and tags, the registered versions and the champion.

    Args:
        workspace: Holds the store.
        server: Holds it instead.
        name: Of the data set, where a server has several.
    """
    from mlflow import MlflowClient

    client = MlflowClient(server or f"sqlite:///{workspace / 'mlflow.db'}")
    runs = client.search_runs([it.experiment_id for it in client.search_experiments() if name in ("", it.name)])
    names = ("tamis.cycle", "tamis.arm", "tamis.proposal", "tamis.review", "tamis.dataset_sha256", "tamis.changed")
    [model] = [found for found in client.search_registered_models() if name in ("", found.name)]
    versions = client.search_model_versions(f"name = '{model.name}'")
    return {
        "runs": sorted([run.info.status, *(str(run.data.tags.get(name)) for name in names)] for run in runs),
        "metrics": sorted(
            sorted(item for item in run.data.metrics.items() if not item[0].startswith("system/")) for run in runs
        ),
        "versions": sorted((int(found.version), found.tags["tamis.checkpoint"]) for found in versions),
        "champion": dict(model.aliases),
    }


def models(workspace: Path) -> dict[Path, tuple[int, int, str]]:
    """Every finished model: when its file was written, as which file, and its hash."""
    found = workspace.glob("cycles/*/checkpoints/*/step-*/model.safetensors")
    return {
        path: (path.stat().st_mtime_ns, path.stat().st_ino, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in found
    }


def text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def popen_python(code: str, *arguments: str) -> "subprocess.Popen[str]":
    """A helper process that says a line when it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline(), "the helper did not start"
    return process
