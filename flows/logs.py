"""What a command did, as JSON lines in `<workspace>/logs/tamis.jsonl`, for whatever collects logs.

    {"time", "level", "cycle", "stage", "rank", "message"}     cycle, stage and rank are null where there is none

A line where a stage or a phase of it begins and where a stage ends, for what each rank spent or failed of, and for
warnings of the ledger. What ranks and libraries print stays in the cycle's own `logs/`.
"""

from __future__ import annotations

import functools
import json
import logging
import logging.handlers
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import ParamSpec, TypeVar

from flows.errors import BadInput, StageFailed
from flows.launch import Progress
from flows.redaction import hide
from storage.errors import StorageError

P = ParamSpec("P")
R = TypeVar("R")

LOG = "tamis.jsonl"
MOST_BYTES, FILES = 10_000_000, 5
logger = logging.getLogger("tamis")
logger.setLevel(logging.INFO)
logger.propagate = False
logger.addHandler(logging.NullHandler())

_cycle: ContextVar[int | None] = ContextVar("cycle", default=None)
_stage: ContextVar[str | None] = ContextVar("stage", default=None)


class JsonLines(logging.Formatter):
    """One JSON object a line, without secrets."""

    def __init__(self, secrets: frozenset[str]) -> None:
        super().__init__()
        self._secrets = secrets

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "cycle": _cycle.get(),
            "stage": _stage.get(),
            "rank": getattr(record, "rank", None),
            "message": hide(record.getMessage(), self._secrets),
        }
        return json.dumps(line, ensure_ascii=False)


@contextmanager
def logged(workspace: Path, secrets: frozenset[str]) -> Iterator[None]:
    """Write the log while the context is open; the caller holds the workspace.

    Args:
        workspace: Where.
        secrets: Texts that are not to stand in it.
    """
    folder = workspace / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    handler = logging.handlers.RotatingFileHandler(folder / LOG, "a", MOST_BYTES, FILES, encoding="utf-8")
    handler.setFormatter(JsonLines(secrets))
    warned = logging.StreamHandler()  # a logger that has a handler no longer prints its warnings by itself
    warned.setLevel(logging.WARNING)
    theirs = logging.getLogger("storage")
    for one, added in ((logger, handler), (theirs, handler), (theirs, warned)):
        one.addHandler(added)
    try:
        yield
    finally:
        for one, added in ((logger, handler), (theirs, handler), (theirs, warned)):
            one.removeHandler(added)
        handler.close()


def stage_logged(stage: Callable[P, R], cycle: int | None, secrets: frozenset[str]) -> Callable[P, R]:
    """A stage that says when it begins and how it ends, and whose error names no secret.

    Args:
        stage: A plain function.
        cycle: Its number, once it is known.
        secrets: Texts that are not to stand in what it raises.
    """

    @functools.wraps(stage)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        name = stage.__name__
        known, named = _cycle.set(cycle), _stage.set(name)
        started = time.monotonic()
        try:
            logger.info("begins")
            result = stage(*args, **kwargs)
            logger.info("ended after %.1f s", time.monotonic() - started)
            return result
        except Exception as error:
            logger.error("failed: %s: %s", type(error).__name__, error)
            if any(hide(text, secrets) != text for text in _texts(error)):
                raise _hidden(error, secrets) from None
            raise
        finally:
            _cycle.reset(known)
            _stage.reset(named)

    return call


def _texts(error: BaseException | None) -> Iterator[str]:
    """What a traceback says of an error: also of those that led to it."""
    while error is not None:
        yield str(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _hidden(error: Exception, secrets: frozenset[str]) -> Exception:
    """An error without secrets, and without what led to it; one that is not ours says of which kind it was."""
    said = hide(str(error), secrets)
    if isinstance(error, BadInput | StageFailed | StorageError):
        return type(error)(said)
    return StageFailed(f"{type(error).__name__}: {said}")


def phases_logged(show: Callable[[Progress], None]) -> Callable[[Progress], None]:
    """Shows progress, and logs where a phase begins."""
    phase = ""

    def both(progress: Progress) -> None:
        nonlocal phase
        if progress.phase != phase:
            phase = progress.phase
            logger.info("%s: %d", progress.phase, progress.total)
        show(progress)

    return both
