"""`tamis serve`: one process that holds schedule, worker and review watcher of some tamis.toml on this machine.

Each due cycle is a process of its own, started by Prefect's runner; it and its ranks end with the service.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from flows.claims import Claim, claimed, end_left_over, mark_processes
from flows.config import Config, load
from flows.errors import BadInput, StageFailed
from flows.own_server import answers, own_server, service_environment
from flows.webhooks import SECRET, Gate, receiver

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.schemas.responses import DeploymentResponse
    from prefect.runner import Runner

    from flows.watching import Watcher


LAST_PORT = 65535
STOP_SECONDS, LAST_SECONDS = 30.0, 10.0
"""How long a Prefect server that does not answer is told that the service ends, before it is asked once more."""


@dataclass(frozen=True)
class Extent:
    """How the cycles of a service are run.

    Attributes:
        limit: Cycles at once.
        pool: A work pool whose workers run them instead of this process, which then only watches.
        webhooks: `HOST:PORT` where webhooks of MLflow are received.
    """

    limit: int = 1
    pool: str | None = None
    webhooks: str | None = None


def serve_files(files: Sequence[Path], extent: Extent, port: int) -> None:
    """Serve some tamis.toml until Ctrl-C or SIGTERM.

    Args:
        files: One of each data set.
        extent: How.
        port: Of the Prefect server that is started where PREFECT_API_URL names none.

    Raises:
        BadInput: A file cannot be served, or another process serves its workspace.
    """
    configs = [_servable(file) for file in files]
    _check_apart(configs)
    _check_webhooks(extent)
    with ExitStack() as held:
        claims = [held.enter_context(claimed(config.workspace)) for config in configs]
        for config in configs:
            end_left_over(config.workspace)
        mark_processes(config.workspace for config in configs)
        service_environment(configs[0].workspace)
        url = os.environ.get("PREFECT_API_URL") or held.enter_context(own_server(configs[0].workspace, port))
        os.environ["PREFECT_API_URL"] = url
        try:
            asyncio.run(_serve(configs, claims, extent, url))
        except (httpx.HTTPError, ExceptionGroup) as error:
            raise StageFailed(_unanswered(url, error)) from error
    say("ended")


def _unanswered(url: str, error: httpx.HTTPError | ExceptionGroup[Exception]) -> str:
    """What ends a service whose Prefect server is away for longer than its client and its runner try again."""
    if isinstance(error, ExceptionGroup) and error.split((RuntimeError, httpx.HTTPError))[1] is not None:
        raise error
    return f"Prefect's server at {url} does not answer; once it does, `tamis serve` goes on with what was at work"


def say(line: str) -> None:
    """A line of the service's log."""
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def _servable(file: Path) -> Config:
    config = load(file)
    if config.orchestrator == "none":
        raise BadInput(f'{file}: orchestrator = "none" has no service; set orchestrator = "prefect"')
    return config


def _check_apart(configs: Sequence[Config]) -> None:
    workspaces = [str(config.workspace.resolve()) for config in configs]
    for what, given in (("dataset", [config.name for config in configs]), ("workspace", workspaces)):
        twice = sorted({value for value in given if given.count(value) > 1})
        if twice:
            raise BadInput(f"{what} {twice[0]!r} is that of several files: give each its own")


async def _serve(configs: Sequence[Config], claims: Sequence[Claim], extent: Extent, url: str) -> None:
    from prefect.runner import Runner

    from flows.deployments import schedule_said
    from flows.watching import Watcher

    logging.getLogger("prefect.runner").setLevel(logging.WARNING)  # it tells at every look what it does not begin
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    class Stoppable(Runner):
        """Prefect's runner, which would end the process by itself."""

        def handle_sigterm(self, *_: Any, **__: Any) -> None:
            loop.call_soon_threadsafe(stop.set)

    seconds = min(config.service.poll_seconds for config in configs)
    cycles, forms = (
        Stoppable(name, query_seconds=seconds, limit=most, pause_on_shutdown=False)
        for name, most in (("tamis", extent.limit), ("tamis-review", None))  # no decision waits for another one's cycle
    )
    served = await _register(configs, extent, cycles, forms)
    loop.add_signal_handler(signal.SIGINT, stop.set)
    watcher = Watcher(served, say)
    with _webhooks(extent, watcher):
        runners = [forms] if extent.pool else [cycles, forms]
        running = [asyncio.create_task(runner.start()) for runner in runners]
        for config, claim in zip(configs, claims):
            claim.announce(url)
            say(f"{config.name}: {schedule_said(config)}; {config.file}")
        say(f"Prefect: {url.removesuffix('/api')}; Ctrl-C ends the service and what it runs")
        watcher.start()
        await _until(stop, dict(zip(runners, running)), watcher, url)


async def _register(configs: Sequence[Config], extent: Extent, cycles: Runner, forms: Runner) -> dict[UUID, Config]:
    """Tell Prefect of the files; gives the ids of their deployments."""
    from prefect.deployments.runner import DeploymentApplyError

    from flows.deployments import apply_to_pool, deployment_of, form_of

    served: dict[UUID, Config] = {}
    for config, known in zip(configs, await asyncio.to_thread(_known, configs, extent.pool)):
        deployment, pool = deployment_of(config, known), extent.pool
        try:
            applied = apply_to_pool(deployment, known, pool) if pool else cycles.aadd_deployment(deployment)
            served[await applied] = config
            await forms.aadd_deployment(form_of(config))
        except DeploymentApplyError as error:
            said = " ".join(str(error).split())
            raise StageFailed(f"Prefect's server does not take the deployment of {config.file}: {said}") from error
    return served


async def _until(stop: asyncio.Event, running: dict[Any, asyncio.Task[None]], watcher: Watcher, url: str) -> None:
    stopping, watching = asyncio.create_task(stop.wait()), asyncio.create_task(asyncio.to_thread(watcher.join))
    await asyncio.wait({stopping, watching, *running.values()}, return_when=asyncio.FIRST_COMPLETED)
    blind = watching.done() and not stop.is_set()
    stopping.cancel()
    with _in_time(url):
        await asyncio.to_thread(watcher.stop)
        for runner, task in running.items():
            if not task.done():
                await runner.astop()
        await watching
        await asyncio.gather(*running.values())
    if blind:
        raise StageFailed("the watcher of reviews ended by an error of its own (above); `tamis serve` starts it again")


@contextmanager
def _in_time(url: str) -> Iterator[None]:
    """Leave what is done inside where it takes too long: Prefect's client cannot be told to try no longer."""
    done = threading.Event()

    def look() -> None:
        while not done.wait(STOP_SECONDS):
            if not answers(url) and not done.wait(LAST_SECONDS) and not answers(url):
                say(f"Prefect's server at {url} does not answer; ended without telling it, and what was run ends, too")
                os._exit(1)  # the lifelines of its server and its cycles end them

    threading.Thread(target=look, name="end", daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _webhooks(extent: Extent, watcher: Watcher) -> AbstractContextManager[Any]:
    if extent.webhooks is None:
        return nullcontext()
    host, _, port = extent.webhooks.rpartition(":")
    return receiver(host, int(port), Gate(os.environ[SECRET]), watcher.wake)


def _check_webhooks(extent: Extent) -> None:
    if extent.webhooks is None:
        return
    host, _, port = extent.webhooks.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or int(port) > LAST_PORT:
        raise BadInput(f"--webhooks {extent.webhooks}: give HOST:PORT, e.g. 127.0.0.1:4201; ports end at {LAST_PORT}")
    if not os.environ.get(SECRET):
        raise BadInput(f"--webhooks needs {SECRET}, the secret that the webhook is registered with in MLflow")


def _known(configs: Sequence[Config], pool: str | None) -> list[DeploymentResponse | None]:
    """The deployments as Prefect has them, free of what a service that was killed left."""
    from prefect.client.orchestration import get_client

    from flows.deployments import check_pool, clear, known_deployment

    with get_client(sync_client=True) as client:
        if pool is not None:
            check_pool(client, pool)
        known = [known_deployment(client, config) for config in configs]
        for deployment in known:
            if deployment is not None and pool is None:  # the runs of a pool are those of its workers
                clear(client, deployment)
    return known
