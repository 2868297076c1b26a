"""Many small models, trained in parallel, each kept: a run that was killed trains only what is missing.

One process per core, each on one thread, so that a model does not depend on how many are trained beside it. What is
kept of a model is one small file, written whole or not at all and named by a digest of everything it depends on.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

import torch

from flows.config import Config
from flows.errors import StageFailed
from flows.launch import Progress
from flows.ranks.lifeline import die_with_parent
from flows.validation.models import Outcome, retrain
from flows.validation.setting import Setting, read_setting
from flows.validation.subsets import Retraining
from storage.files import sha256_json


class Pool:
    """Trains models of one setting; a context, whose end ends the processes.

    Args:
        setting: Workload, recipe and data.
        folder: Where outcomes are kept.
        show: Shows progress.
    """

    def __init__(self, setting: Setting, folder: Path, show: Callable[[Progress], None]) -> None:
        self._config, self._folder, self._show = setting.config, folder, show
        self._inputs = setting.inputs
        self._executor: ProcessPoolExecutor | None = None

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
            for worker in multiprocessing.active_children():
                worker.terminate()

    def outcomes(self, phase: str, jobs: Sequence[Retraining]) -> Outcome:
        """What the models say, stacked in the order of the jobs; those that are not there yet are trained.

        Args:
            phase: Name of the work, as progress shows it.
            jobs: The models.

        Raises:
            BadInput: A model's loss is not finite.
            StageFailed: A process was killed.
        """
        paths = [self._folder / f"{sha256_json(self._inputs | asdict(job))}.safetensors" for job in jobs]
        missing = {path: job for path, job in zip(paths, jobs) if not path.exists()}
        done = len(set(paths)) - len(missing)
        self._show(Progress(phase, done, done + len(missing)))
        if missing:
            self._train(phase, missing, done)
        return Outcome.stack([Outcome.read(path) for path in paths])

    def _train(self, phase: str, missing: dict[Path, Retraining], done: int) -> None:
        running = [self._workers().submit(_train_one, job, path) for path, job in missing.items()]
        try:
            for finished, future in enumerate(as_completed(running), start=done + 1):
                future.result()
                self._show(Progress(phase, finished, done + len(missing)))
        except BrokenProcessPool as error:
            raise StageFailed(
                f"validate: a process that trained {phase} was killed (out of memory?); the same command continues"
            ) from error

    def _workers(self) -> ProcessPoolExecutor:
        if self._executor is None:
            self._executor = ProcessPoolExecutor(
                len(os.sched_getaffinity(0)),
                mp_context=multiprocessing.get_context("spawn"),  # a fork would inherit torch's threads, locked
                initializer=_begin,
                initargs=(self._config, os.getpid()),
            )
        return self._executor


_setting: Setting


def _begin(config: Config, parent: int) -> None:
    global _setting
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends its workers
    torch.set_num_threads(1)
    _setting = read_setting(config)


def _train_one(job: Retraining, path: Path) -> None:
    retrain(_setting, job).write(path)
