"""Progress of a stage: a bar in a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType

from pyspark.errors import PySparkException
from pyspark.sql import SparkSession
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

_POLL_SECONDS = 0.5
_LINE_EVERY_SECONDS = 15.0
_LOG_WIDTH = 140


def build_console() -> Console:
    """A console on standard output: as wide as the terminal, or of a fixed width and without colours in a log."""
    if sys.stdout.isatty():
        return Console(markup=False, highlight=False)
    return Console(markup=False, highlight=False, width=_LOG_WIDTH, no_color=True, force_terminal=False)


class StageProgress:
    """Shows that a stage is alive: its seconds, and the tasks of the Spark jobs that it runs.

    Without a session only its start and its end: what runs inside shows that it is alive by itself.
    """

    def __init__(self, console: Console, spark: SparkSession | None, title: str) -> None:
        self._console = console
        self._spark = spark
        self._title = title
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="progress")
        self.seconds = 0.0

    def __enter__(self) -> StageProgress:
        self._started = time.monotonic()
        self._console.print(f"{self._title} ...")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self.seconds = time.monotonic() - self._started
        state = "done in" if error is None else "failed after"
        self._console.print(f"{self._title} {state} {self.seconds:.1f} s")

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self._console.print(f"    {line}")

    def _watch(self) -> None:
        if self._spark is None:
            return
        if self._console.is_terminal:
            self._watch_bar()
        else:
            self._watch_lines()

    def _watch_bar(self) -> None:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[tasks]}"))
        with Progress(*columns, TimeElapsedColumn(), console=self._console, transient=True) as bar:
            task = bar.add_task(self._title, total=None, tasks="")
            while not self._stop.wait(_POLL_SECONDS):
                done, total = self._tasks()
                bar.update(task, completed=done, total=total or None, tasks=f"{done}/{total} tasks" if total else "")

    def _watch_lines(self) -> None:
        while not self._stop.wait(_LINE_EVERY_SECONDS):
            done, total = self._tasks()
            tasks = f", {done}/{total} tasks of the running Spark stages" if total else ""
            self._console.print(f"    {self._title}: {time.monotonic() - self._started:.0f} s{tasks}")

    def _tasks(self) -> tuple[int, int]:
        """Completed and total tasks of the running Spark stages; none where the platform hides the Spark context."""
        if self._spark is None:
            return 0, 0
        try:
            tracker = self._spark.sparkContext.statusTracker()
            running = [tracker.getStageInfo(stage) for stage in tracker.getActiveStageIds()]
        except PySparkException:
            self._spark = None
            return 0, 0
        known = [info for info in running if info is not None]
        return sum(info.numCompletedTasks for info in known), sum(info.numTasks for info in known)
