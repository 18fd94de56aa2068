"""Stages that are Spark applications of their own: Horovod training."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import psutil
from rich.console import Console

from xrec.config import as_yaml
from xrec.runs.progress import StageProgress
from xrec.runs.stage import WHOLE_RUN, StageContext, StageFailedError, command_from
from xrec.runs.stages import StageInfo

_NEVER_RETRY = {
    # A task that Spark runs again would be a second process of the same rank.
    "spark.task.maxFailures": "1",
    "spark.speculation": "false",
    "spark.dynamicAllocation.enabled": "false",
}


_PASSED_ON = (
    *("spark.hadoop.", "spark.executor.", "spark.executorEnv.", "spark.yarn.", "spark.pyspark.", "spark.kerberos."),
    *("spark.driver.memory", "spark.local.dir", "spark.archives", "spark.files", "spark.jars", "spark.submit.pyFiles"),
)
"""How the names of Spark's settings begin that an application of this run has as well: where it runs and what it may read."""
_ITS_OWN = ("spark.executor.id", "spark.yarn.app.")
_SUBMITTED = "PYSPARK_GATEWAY_PORT"
"""Environment variable of a process that the JVM of spark-submit started."""
_POLL_SECONDS = 1.0
_END_SECONDS = 20.0
"""Seconds that an application has to stop by itself."""
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1
"""Of prctl(2): the signal that a process gets when its parent is gone."""


def run_as_application(stage: StageInfo, context: StageContext, title: str, console: Console) -> None:
    """Submit ``jobs/<stage>.py`` with the same settings and wait for it; its output is shown as it comes.

    Raises
    ------
    StageFailedError
        The application ended with an error, which it has printed, or Spark of this run is gone.
    """
    job = Path(sys.argv[0]).resolve().parent / f"{stage.name}.py"
    master = str(context.spark.sparkContext.master)
    if master.startswith("local"):
        # Every process of the training needs a task slot at the same moment.
        master = f"local[{context.settings.sequence.num_processes}]"
    command = [_spark_submit(), "--master", master, "--load-spark-defaults"]
    for key, value in _NEVER_RETRY.items():
        command += ["--conf", f"{key}={value}"]
    # Files that only their owner can read: a command's secrets would be seen by all on the machine.
    with (
        StageProgress(console, None, title),
        tempfile.NamedTemporaryFile("w", suffix=".conf") as properties,
        tempfile.NamedTemporaryFile("w", suffix=".yaml") as settings,
    ):
        # Not the run's files, which somebody may have edited since it began.
        settings.write(as_yaml(context.settings))
        settings.flush()
        command += [str(job), "--run-id", context.run_id, "--config", settings.name]
        properties.write(properties_of(context.spark.sparkContext.getConf().getAll()))
        properties.flush()
        command[1:1] = ["--properties-file", properties.name]
        exit_code = run_beside_parent(
            command, {**context.settings.privacy.without_key(os.environ), WHOLE_RUN: context.run_id}
        )
        if exit_code != 0:
            raise StageFailedError(
                f"stage {stage.name} ended with exit code {exit_code}, its message is above; once that is "
                f"mended, go on with {command_from(stage.name, context)}"
            )


def run_beside_parent(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a command to its end and give its exit code; it and all that it started end early where this process is interrupted.

    So they do where spark-submit started this process and its JVM is gone, and on Linux where this process is killed: nobody would
    hear of them, and the same command would start them a second time.

    Raises
    ------
    StageFailedError
        The JVM is gone.
    """
    parent, is_submitted = os.getppid(), _SUBMITTED in os.environ
    child = psutil.Popen(command, env=environment, preexec_fn=_end_with_parent)
    try:
        while not is_submitted or os.getppid() == parent:
            with contextlib.suppress(psutil.TimeoutExpired):
                return int(child.wait(_POLL_SECONDS))
    finally:
        _end(child)
    raise StageFailedError(
        f"process {parent}, the JVM of this run, is gone (killed, out of memory?): what it waited for was ended as well; the same "
        "command goes on from the last checkpoint"
    )


def _end_with_parent() -> None:
    """In a new process: ask Linux to send it SIGTERM when its parent is gone, whatever it runs by then."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _end(child: psutil.Popen) -> None:
    """End a process, where it still runs, and all below it; its ranks on other machines end with the executors of its driver."""
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [child, *child.children(recursive=True)]
        for one in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.terminate()
        for one in psutil.wait_procs(family, timeout=_END_SECONDS)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()


def properties_of(settings: Iterable[tuple[str, str]]) -> str:
    """Of a session's settings those that another application of the run has as well, as a properties file of Java."""
    escaped = str.maketrans({"\\": "\\\\", "\n": "\\n", "\r": "\\r"})
    return "".join(
        f"{name}={value.translate(escaped)}\n"
        for name, value in sorted(settings)
        if value and name.startswith(_PASSED_ON) and not name.startswith(_ITS_OWN)
    )


def _spark_submit() -> str:
    beside_python = Path(sys.executable).with_name("spark-submit")
    found = str(beside_python) if beside_python.exists() else shutil.which("spark-submit")
    if found is None:
        raise StageFailedError("spark-submit not found on PATH: activate the environment (source .venv/bin/activate)")
    return found
