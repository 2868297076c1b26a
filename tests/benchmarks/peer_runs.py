"""Methods of one library on every model of a task: `python -m tests.benchmarks.peer_runs LIBRARY JOBS`.

In the interpreter that has the peers, one thread; every method in a forked process of its own, so that a library is
imported once and memory is counted afresh. On the first model every damping of the grid is tried, and the one is taken
whose LDS on the halves that a user can afford is highest. What counts as memory is the highest resident size of the
first run above what is resident with library and data loaded.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from influence.validation import lds
from tests.benchmarks.peak import status
from tests.benchmarks.peer_problem import Handed, Method, Problem

SECONDS, BYTES = 600, 8 << 30  # that a row may take
TURNS = 20  # of the floor at a time, which is shorter than a tick of the clock


@dataclass(frozen=True)
class Run:
    """One scoring of all pairs.

    Attributes:
        scores: influence, [n, m], float32.
        damping: 0 where the method has none.
        seconds: of the processor.
        floor: seconds of one plain forward and backward over the same points and queries, beside it.
        peak: MB; of the first run of a process only, else NaN.
    """

    scores: Tensor
    damping: float
    seconds: float
    floor: float
    peak: float


def main() -> None:
    """Run the jobs that a file lists, one after the other."""
    torch.set_num_threads(1)
    library, jobs = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    methods: dict[str, Method] = importlib.import_module(f"tests.benchmarks.peer_{library}").METHODS
    for job in jobs:
        child = os.fork()
        if not child:
            _attempt(methods[job["method"]], job["dampings"], job["models"], [Path(path) for path in job["out"]])
            os._exit(0)
        _, ended = os.waitpid(child, 0)
        if ended:  # killed: out of memory or of time
            Path(job["out"][0]).with_suffix(".error").write_text(f"ended by signal {os.waitstatus_to_exitcode(ended)}")
        print(f"{library} {job['method']}: {'done' if not ended else f'ended with {ended}'}", flush=True)


def _attempt(method: Method, dampings: list[float], models: list[str], out: list[Path]) -> None:
    """A row, or its error in place of the first of its files."""
    _limit()
    try:
        _row(method, dampings, models, out)
    except Exception as error:  # whatever a library raises is what the table says of it
        out[0].with_suffix(".error").write_text(f"{type(error).__name__}: {error}")


def _row(method: Method, dampings: list[float], models: list[str], out: list[Path]) -> None:
    first = _measured(method, models[0], dampings[0])
    tried = [first, *(_measured(method, models[0], damping) for damping in dampings[1:])]
    handed: Handed = torch.load(models[0])
    halves, losses = handed["halves"], handed["losses"]
    chosen = max(tried, key=lambda run: float(lds(run.scores.double(), halves, losses).mean()))
    runs = [chosen, *(_measured(method, model, chosen.damping) for model in models[1:])]
    for path, run in zip(out, runs, strict=True):
        torch.save(asdict(run) | {"peak": first.peak}, path)


def _measured(method: Method, model: str, damping: float) -> Run:
    problem = Problem.of(torch.load(model))
    floor = min(_cpu_seconds(lambda: [problem.floor() for _ in range(TURNS)])[0] for _ in range(3)) / TURNS
    resident = status("VmRSS")
    seconds, scores = _cpu_seconds(lambda: method(problem, damping))
    peak = (status("VmHWM") - resident) / 1024
    if not bool(scores.isfinite().all()):
        raise ValueError(f"damping {damping:g}: scores are not finite")
    return Run(scores.float(), damping, seconds, floor, peak)


def _cpu_seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.process_time()
    done = work()
    return time.process_time() - started, done


def _limit() -> None:
    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"more than {SECONDS} CPU seconds")

    signal.signal(signal.SIGXCPU, stop)
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 60))
    resource.setrlimit(resource.RLIMIT_DATA, (BYTES, BYTES))


if __name__ == "__main__":
    main()
