"""Progress as people see it: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flows.launch import Progress

LINE_SECONDS = 5.0


@contextmanager
def progress_shown() -> Iterator[Callable[[Progress], None]]:
    """Show progress on standard error while the context is open."""
    if not sys.stderr.isatty():
        yield Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description:<34}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bars(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, int] = {}

        def show(progress: Progress) -> None:
            if progress.phase not in tasks:
                tasks[progress.phase] = int(bars.add_task(progress.phase, total=progress.total))
            bars.update(tasks[progress.phase], completed=progress.done, total=progress.total)  # type: ignore[arg-type]

        yield show


class Lines:
    """Progress as lines on standard error, also where bars are open: those move down."""

    def __init__(self) -> None:
        self._phase, self._last = "", 0.0

    def __call__(self, progress: Progress) -> None:
        """Print where a phase begins and ends, and between them now and then."""
        now = time.monotonic()
        if progress.phase != self._phase or now - self._last >= LINE_SECONDS or progress.done == progress.total:
            self._phase, self._last = progress.phase, now
            stamp = time.strftime("%H:%M:%S")
            print(f"{stamp} {progress.phase}: {progress.done:,} of {progress.total:,}", file=sys.stderr, flush=True)
